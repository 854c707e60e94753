"""Encoded pictures in, aligned crops (or the reasons why there is none) out, in order; the whole room in one call.

Pictures are decoded, searched and warped in runs of bounded memory, which depend on the sequence of pictures alone, so
that the same sequence gives the same crops. `VERSION` is raised when the crops of the same pictures change.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from pydantic import Field

from fer_pipeline.alignment.cascade import DetectionSettings, Detector, FoundFace
from fer_pipeline.alignment.engines import Engine, resolved
from fer_pipeline.alignment.networks import weights_hashes
from fer_pipeline.alignment.pictures import PictureSettings, Rejection, decode_picture
from fer_pipeline.alignment.selection import NoFace, SeveralFaces, choose
from fer_pipeline.alignment.warp import Border, centre_map, moved, similarity, template, warped
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.settings import Settings

VERSION = 1
PICTURES_PER_RUN = 64
BYTES_PER_RUN = 100_000_000


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
    """What the crop of a picture depends on beside its bytes."""
    if settings.prealigned:
        return fingerprint(VERSION, "prealigned", settings.crop, settings.grey, settings.pictures)
    return fingerprint(VERSION, settings.model_copy(update={"engine": resolved(settings.engine)}), weights_hashes())


class Aligner:
    """The settings with the networks on a device; without networks for crops that are aligned already."""

    def __init__(self, settings: AlignmentSettings, *, device: str | torch.device = "cpu") -> None:
        self.settings = settings
        self.detector = (
            None if settings.prealigned else Detector(settings.detection, device=device, engine=settings.engine)
        )

    def align(self, pictures: Iterable[bytes | Rejection]) -> Iterator[Crop | Rejection]:
        """One crop or rejection for each picture, in order; a rejection that comes in goes out."""
        run: list[np.ndarray | Rejection] = []
        size = 0
        for picture in pictures:
            decoded = picture if isinstance(picture, Rejection) else self._decoded(picture)
            run.append(decoded)
            size += 0 if isinstance(decoded, Rejection) else decoded.nbytes
            if len(run) == PICTURES_PER_RUN or size > BYTES_PER_RUN:
                yield from self._aligned(run)
                run, size = [], 0
        yield from self._aligned(run)

    def _decoded(self, data: bytes) -> np.ndarray | Rejection:
        try:
            return decode_picture(data, self.settings.pictures)
        except Rejection as rejection:
            return rejection

    def _aligned(self, run: list[np.ndarray | Rejection]) -> Iterator[Crop | Rejection]:
        images = [picture for picture in run if not isinstance(picture, Rejection)]
        found = iter(self.detector.find(images) if self.detector else [[] for _ in images])
        for picture in run:
            if isinstance(picture, Rejection):
                yield picture
                continue
            try:
                yield self._crop(picture, next(found))
            except Rejection as rejection:
                yield rejection

    def _crop(self, image: UInt8[np.ndarray, "h w 3"], faces: list[FoundFace]) -> Crop:
        size = self.settings.crop
        if self.settings.prealigned:
            return Crop(self._coloured(_resized(image, size)), template(size).astype(np.float32), None)
        height, width = image.shape[:2]
        if not faces and self.settings.no_face == "centre_crop":
            matrix = centre_map(height, width, size=size)
            return Crop(self._coloured(warped(image, matrix, size=size, border=self.settings.border)), None, None)
        face = choose(faces, height=height, width=width, several=self.settings.several_faces)
        matrix = similarity(face.landmarks, template(size))
        crop = warped(image, matrix, size=size, border=self.settings.border)
        return Crop(self._coloured(crop), moved(face.landmarks, matrix).astype(np.float32), face.score)

    def _coloured(self, crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
        if not self.settings.grey:
            return crop
        luma = (
            crop.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 0x8000 >> 16
        )  # ITU-R 601, as Pillow's
        return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=2)


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    if image.shape[0] != image.shape[1]:
        raise Rejection("not_square")
    if image.shape[0] == size:
        return image
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
