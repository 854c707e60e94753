"""Picture files in, aligned crops with the boxes they come from (or the reasons why there is none) out, in order.

Unlike `align`, which takes one face of a picture by a rule, all faces may be wanted here, and their boxes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, SeveralFaces, choose_face
from fer_pipeline.alignment.cascade import DetectedFace, Detector
from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture
from fer_pipeline.alignment.warp import align_face
from fer_pipeline.artifacts.faces import decode_one, encode
from fer_pipeline.commands.predict_rows import BOX, LANDMARKS, Row

BYTES_PER_RUN = 100_000_000  # of decoded pixels
LARGEST_FILE = 500_000_000  # bytes; what is larger is no picture of faces, and is not read into memory

Files = Sequence[tuple[str, Path]]  # name in the table, path
Advance = Callable[[int], None]


@dataclass(frozen=True)
class CropSettings:
    """How the model's training faces were made."""

    alignment: AlignmentSettings
    format: Literal["jpeg", "png"]
    quality: int
    known: bool  # false: the card does not say, the usual settings are taken

    def stored(self, crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
        """The crop as it comes back from a shard."""
        return decode_one(encode(crop, format=self.format, quality=self.quality))


@dataclass(frozen=True)
class Found:
    """What a row says before its face is classified; without a crop the row is final."""

    row: Row
    crop: UInt8[np.ndarray, "s s 3"] | None = None


@dataclass(frozen=True)
class _Picture:
    name: str
    image: UInt8[np.ndarray, "h w 3"] | Rejection


def aligned_crops(files: Files, settings: CropSettings, advance: Advance) -> Iterator[Found]:
    """Pictures that are crops already, as `align` passes them through."""
    results = Aligner(settings.alignment).align(_bytes(path) for _, path in files)
    for (name, _), result in zip(files, results, strict=True):
        advance(1)
        yield (
            _rejected(name, result)
            if isinstance(result, Rejection)
            else Found({"image": name, "face": 0}, result.image)
        )


def aligned_faces(
    files: Files,
    settings: CropSettings,
    detector: Detector,
    advance: Advance,
    *,
    faces: Literal["all"] | SeveralFaces,
    batch: int,
) -> Iterator[Found]:
    """The faces of every picture, the most certain first, or the one that the rule takes."""
    for run in _runs(files, settings.alignment.pictures, most=batch):
        images = [picture.image for picture in run if not isinstance(picture.image, Rejection)]
        found = iter(detector.detect(images))
        for picture in run:
            advance(1)
            if isinstance(picture.image, Rejection):
                yield _rejected(picture.name, picture.image)
                continue
            try:
                taken = _taken(picture.image, next(found), faces)
            except Rejection as rejection:
                yield _rejected(picture.name, rejection)
                continue
            for number, face in taken:
                yield _aligned(picture.name, picture.image, number, face, settings.alignment)


def _taken(
    image: UInt8[np.ndarray, "h w 3"], found: list[DetectedFace], faces: Literal["all"] | SeveralFaces
) -> list[tuple[int, DetectedFace]]:
    if found and faces == "all":
        return list(enumerate(found))
    height, width = image.shape[:2]
    one = choose_face(found, height=height, width=width, rule="largest" if faces == "all" else faces)
    return [(number, face) for number, face in enumerate(found) if face is one]


def _aligned(
    name: str, image: UInt8[np.ndarray, "h w 3"], number: int, face: DetectedFace, settings: AlignmentSettings
) -> Found:
    row: Row = {"image": name, "face": number, "score": face.score}
    row |= dict(zip(BOX, face.box.tolist(), strict=True))
    row |= dict(zip(LANDMARKS, face.landmarks.ravel().tolist(), strict=True))
    try:
        crop = align_face(image, face.landmarks, size=settings.crop, border=settings.border)
    except Rejection as rejection:
        return Found({**row, "reason": rejection.reason})
    if settings.grey:
        crop = np.array(Image.fromarray(crop).convert("L").convert("RGB"))
    return Found(row, crop)


def _runs(files: Files, settings: PictureSettings, *, most: int) -> Iterator[list[_Picture]]:
    """Decoded pictures in runs of bounded memory."""
    run: list[_Picture] = []
    size = 0
    for name, path in files:
        image = _decoded(path, settings)
        run.append(_Picture(name, image))
        size += 0 if isinstance(image, Rejection) else image.nbytes
        if len(run) == most or size > BYTES_PER_RUN:
            yield run
            run, size = [], 0
    if run:
        yield run


def _decoded(path: Path, settings: PictureSettings) -> UInt8[np.ndarray, "h w 3"] | Rejection:
    data = _bytes(path)
    if isinstance(data, Rejection):
        return data
    try:
        return decode_picture(data, settings)
    except Rejection as rejection:
        return rejection


def _bytes(path: Path) -> bytes | Rejection:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return Rejection("unreadable")
        return path.read_bytes() if path.stat().st_size <= LARGEST_FILE else Rejection("too_large_a_file")
    except OSError:
        return Rejection("unreadable")


def _rejected(name: str, rejection: Rejection) -> Found:
    return Found({"image": name, "reason": rejection.reason})
