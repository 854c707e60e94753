"""Align encoded pictures: yield an upright crop of a face, or the reason why there is none, for each, in order.

Pictures are decoded, searched and warped in batches of bounded memory, which depend on the sequence of pictures alone,
so that the same sequence gives the same crops. `VERSION` is raised when another crop is made of the same picture and
the same detected faces: it stands for decoding, the choice of the face and the warp.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image
from pydantic import Field

from fer_pipeline.alignment import cascade, warp
from fer_pipeline.alignment.cascade import DetectedFace, DetectionSettings, Detector
from fer_pipeline.alignment.networks import SHA256, Engine, resolve_engine
from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture
from fer_pipeline.alignment.warp import Border
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.settings import Settings

VERSION = 2  # 1 turned a TIFF twice, and heeded no colour profile
PICTURES_PER_BATCH = 64
BYTES_PER_BATCH = 100_000_000

NoFace = Literal["reject", "centre_crop"]
SeveralFaces = Literal["largest", "most_central", "highest_score", "reject"]
Picture = UInt8[np.ndarray, "_ _ 3"]


class AlignmentSettings(Settings):
    """How a picture becomes a crop."""

    crop: Annotated[int, Field(ge=16, le=1024)] = 112
    border: Border = "reflect"
    grey: bool = False
    prealigned: bool = False  # crops of the template already: no detection, only resized
    no_face: NoFace = "reject"
    several_faces: SeveralFaces = "largest"
    pictures: PictureSettings = PictureSettings()
    detection: DetectionSettings = DetectionSettings()
    engine: Engine = "auto"  # of the detection, on a CPU; auto is torch, which is also what a GPU takes


@dataclass(frozen=True)
class Crop:
    """An aligned face and its landmarks in crop pixels; None where the centre was cut for want of a face."""

    image: UInt8[np.ndarray, "s s 3"]
    landmarks: Float32[np.ndarray, "5 2"] | None
    score: float | None


def alignment_fingerprint(settings: AlignmentSettings) -> str:
    """Returns the fingerprint of all that the crop of a picture depends on beside its bytes, also of the code."""
    if settings.prealigned:
        return fingerprint(VERSION, "prealigned", settings.crop, settings.grey, settings.pictures)
    settings = settings.model_copy(update={"engine": resolve_engine(settings.engine)})
    return fingerprint(VERSION, cascade.VERSION, SHA256, settings)


class Aligner:
    """The settings with the networks on a device; without networks for crops that are aligned already."""

    def __init__(self, settings: AlignmentSettings, *, device: str | torch.device = "cpu") -> None:
        self.settings = settings
        self.detector = None
        if not settings.prealigned:
            self.detector = Detector(settings.detection, device=device, engine=settings.engine)

    def align(self, pictures: Iterable[bytes | Rejection]) -> Iterator[Crop | Rejection]:
        """Yields one crop or rejection for each picture, in order; a rejection that comes in goes out."""
        for picture in self.detect(pictures):
            try:
                yield picture if isinstance(picture, Rejection) else self.crop(*picture)
            except Rejection as rejection:
                yield rejection

    def detect(
        self, pictures: Iterable[bytes | Rejection], *, most: int = PICTURES_PER_BATCH
    ) -> Iterator[tuple[Picture, list[DetectedFace]] | Rejection]:
        """Yields each picture decoded with its faces, or its rejection, in order; `most` pictures make a batch."""
        batch: list[Picture | Rejection] = []
        for picture in pictures:
            try:
                image = picture if isinstance(picture, Rejection) else decode_picture(picture, self.settings.pictures)
            except Rejection as rejection:
                image = rejection
            batch.append(image)
            size = sum(image.nbytes for image in batch if isinstance(image, np.ndarray))
            if len(batch) == most or size > BYTES_PER_BATCH:
                yield from self._detect_in_batch(batch)
                batch = []
        yield from self._detect_in_batch(batch)

    def _detect_in_batch(
        self, batch: list[Picture | Rejection]
    ) -> Iterator[tuple[Picture, list[DetectedFace]] | Rejection]:
        images = [image for image in batch if not isinstance(image, Rejection)]
        faces = iter(self.detector.detect(images) if self.detector else [[] for _ in images])
        for image in batch:
            yield image if isinstance(image, Rejection) else (image, next(faces))

    def crop(self, image: Picture, faces: list[DetectedFace]) -> Crop:
        """Returns the crop of the face that the settings choose, or raises a `Rejection`."""
        settings = self.settings
        size, (height, width) = settings.crop, image.shape[:2]
        landmarks, score = None, None
        if settings.prealigned:
            if height != width:
                raise Rejection("not_square")
            crop, landmarks = image, warp.scale_template(size).astype(np.float32)
            if height != size:
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
                resized = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
                crop = resized[0].permute(1, 2, 0).contiguous().numpy()
        elif not faces and settings.no_face == "centre_crop":
            crop = warp.warp_image(image, warp.fit_centre(height, width, size=size), size=size, border=settings.border)
        else:
            face = choose_face(faces, height=height, width=width, rule=settings.several_faces)
            matrix = warp.fit_similarity(face.landmarks, warp.scale_template(size))
            crop = warp.warp_image(image, matrix, size=size, border=settings.border)
            landmarks, score = warp.transform_points(face.landmarks, matrix).astype(np.float32), face.score
        if settings.grey:
            crop = np.array(Image.fromarray(crop).convert("L").convert("RGB"))
        return Crop(crop, landmarks, score)


def choose_face(faces: Sequence[DetectedFace], *, height: int, width: int, rule: SeveralFaces) -> DetectedFace:
    """Chooses a face by the rule; ties go to the more certain face. No face is the rejection `no_face`."""
    if not faces:
        raise Rejection("no_face")
    if len(faces) > 1 and rule == "reject":
        raise Rejection("several_faces")

    def rank(face: DetectedFace) -> tuple[float, float]:
        x1, y1, x2, y2 = face.box.tolist()
        if rule == "largest":
            return (x2 - x1) * (y2 - y1), face.score
        if rule == "most_central":
            return -((x1 + x2 - width) ** 2 + (y1 + y2 - height) ** 2), face.score
        return face.score, 0.0

    return max(faces, key=rank)
