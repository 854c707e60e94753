"""MTCNN over many pictures at once: RGB pictures of any sizes in, boxes, scores and five landmarks of each face out.

Source: Zhang et al., arXiv:1604.02878. P-Net runs over the scale pyramid, batched over pictures of equal size; R-Net and
O-Net run on the crops of all pictures together. Box arithmetic is on the CPU, pixels and networks on any device.
Pictures whose longer side exceeds `max_side` are searched in a shrunken copy.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from fer_pipeline.alignment.boxes import regressed, squared, suppressed, suppressed_by_smaller
from fer_pipeline.alignment.networks import OutputNet, ProposalNet, RefinementNet, load_weights
from fer_pipeline.alignment.pyramid import CELL, normalised, pyramid_scales, resized, square_crops
from fer_pipeline.core.settings import Settings

VERSION = 1
PIXELS_PER_CALL = 400_000
CROPS_PER_CALL = 64
IMAGES_PER_CHUNK = 64
BYTES_PER_CHUNK = 24_000_000

Share = Annotated[float, Field(gt=0, lt=1)]


class DetectionSettings(Settings):
    """What is searched for; the defaults are the constants usual since the paper."""

    min_face: Annotated[int, Field(ge=CELL)] = 20  # side in pixels of the smallest face searched; larger is faster
    factor: Annotated[float, Field(ge=0.3, le=0.95)] = 0.709  # from one scale to the next
    thresholds: tuple[Share, Share, Share] = (0.6, 0.7, 0.7)  # face probability after P-, R- and O-Net
    nms: tuple[Share, Share, Share, Share] = (0.5, 0.7, 0.7, 0.7)  # within a scale, across scales, after R-, after O-Net
    max_side: Annotated[int, Field(ge=64)] = 2048  # longer pictures are searched in a copy shrunken to it


@dataclass(frozen=True)
class FoundFace:
    """A face in pixel coordinates: box (x1, y1, x2, y2), face probability, and left eye, right eye, nose, mouth corners."""

    box: Float32[np.ndarray, "4"]
    score: float
    landmarks: Float32[np.ndarray, "5 2"]


class _Candidates(NamedTuple):
    """Boxes over a list of pictures, each with the index of its picture, its face probability and its regression."""

    image: Int64[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    offsets: Float[Tensor, "n 4"]

    def take(self, index: Tensor) -> "_Candidates":
        return _Candidates(*(field[index] for field in self))


class Detector:
    """The cascade with its weights on a device."""

    def __init__(self, settings: DetectionSettings | None = None, *, device: str | torch.device = "cpu") -> None:
        self.settings = settings or DetectionSettings()
        self.device = torch.device(device)
        self.networks = load_weights(device=self.device)

    @torch.inference_mode()
    def find(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[FoundFace]]:
        """The faces of each picture, most certain first."""
        found: list[list[FoundFace]] = []
        for chunk in _chunks(images):
            found += self._find_in_chunk(chunk)
        return found

    def _find_in_chunk(self, images: Sequence[np.ndarray]) -> list[list[FoundFace]]:
        pixels = [_shrunken(torch.tensor(image, device=self.device), self.settings.max_side) for image in images]
        proposed = self._propose(pixels)
        refined = self._refine(pixels, proposed)
        faces, landmarks = self._output(pixels, refined)
        found: list[list[FoundFace]] = [[] for _ in images]
        for row in faces.scores.argsort(descending=True, stable=True).tolist():
            index = int(faces.image[row])
            stretch = np.divide(images[index].shape[1::-1], pixels[index].shape[1::-1], dtype=np.float32)
            box = (faces.boxes[row].numpy().reshape(2, 2) * stretch).ravel()
            found[index].append(FoundFace(box, float(faces.scores[row]), landmarks[row].numpy() * stretch))
        return found

    def _propose(self, pixels: Sequence[UInt8[Tensor, "_ _ 3"]]) -> _Candidates:
        """P-Net over the pyramids: suppressed within each scale, then across the scales of a picture."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(pixels):
            by_shape[image.shape[0], image.shape[1]].append(index)
        rows, scale_numbers = [], []
        for (height, width), members in by_shape.items():
            stack = torch.stack([pixels[index] for index in members]).permute(0, 3, 1, 2)
            scales = pyramid_scales(height, width, min_face=self.settings.min_face, factor=self.settings.factor)
            for number, scale in enumerate(scales):
                row = self._propose_at(stack, torch.tensor(members), math.ceil(height * scale), math.ceil(width * scale))
                rows.append(row)
                scale_numbers.append(torch.full_like(row.image, number))
        if not rows:
            return _none()
        found = _Candidates(*map(torch.cat, zip(*rows, strict=True)))
        within = found.image * 1000 + torch.cat(scale_numbers)
        found = found.take(suppressed(found.boxes, found.scores, within, threshold=self.settings.nms[0]))
        found = found.take(suppressed(found.boxes, found.scores, found.image, threshold=self.settings.nms[1]))
        return found._replace(boxes=squared(regressed(found.boxes, found.offsets)))

    def _propose_at(
        self, stack: UInt8[Tensor, "n 3 h w"], members: Int64[Tensor, " n"], height: int, width: int
    ) -> _Candidates:
        """The cells of one scale whose face probability passes; boxes in pixels of the unscaled pictures."""
        per_call = max(1, PIXELS_PER_CALL // (height * width))
        rows = []
        for part, part_members in zip(stack.split(per_call), members.split(per_call), strict=True):
            faces, offsets = self.networks.pnet(normalised(resized(part, height=height, width=width)))
            index, y, x = (faces > self.settings.thresholds[0]).nonzero(as_tuple=True)
            corner = torch.stack([x, y], dim=1).cpu() * float(ProposalNet.STRIDE)
            boxes = torch.cat([corner, corner + CELL], dim=1)
            stretch = torch.tensor([stack.shape[3] / width, stack.shape[2] / height]).repeat(2)
            scores = faces[index, y, x].cpu()
            rows.append(_Candidates(part_members[index.cpu()], boxes * stretch, scores, offsets[index, y, x].cpu()))
        return _Candidates(*map(torch.cat, zip(*rows, strict=True)))

    def _refine(self, pixels: Sequence[UInt8[Tensor, "_ _ 3"]], found: _Candidates) -> _Candidates:
        """R-Net on every proposal."""
        scores, offsets = self._on_crops(self.networks.rnet, pixels, found, size=24)
        passed = scores > self.settings.thresholds[1]
        found = _Candidates(found.image, found.boxes, scores, offsets).take(passed)
        found = found.take(suppressed(found.boxes, found.scores, found.image, threshold=self.settings.nms[2]))
        return found._replace(boxes=squared(regressed(found.boxes, found.offsets)))

    def _output(self, pixels: Sequence[UInt8[Tensor, "_ _ 3"]], found: _Candidates) -> tuple[_Candidates, Tensor]:
        """O-Net on what is left: the faces and their landmarks, which are fractions of the box before its regression."""
        scores, offsets, points = self._on_crops(self.networks.onet, pixels, found, size=48)
        corner, side = found.boxes[:, None, :2], (found.boxes[:, 2:] - found.boxes[:, :2])[:, None]
        landmarks = corner + points.view(-1, 2, 5).transpose(1, 2) * side
        passed = scores > self.settings.thresholds[2]
        boxes = regressed(found.boxes, offsets)
        found, landmarks = _Candidates(found.image, boxes, scores, offsets).take(passed), landmarks[passed]
        kept = suppressed_by_smaller(found.boxes, found.scores, found.image, threshold=self.settings.nms[3])
        return found.take(kept), landmarks[kept]

    def _on_crops(
        self, network: RefinementNet | OutputNet, pixels: Sequence[Tensor], found: _Candidates, *, size: int
    ) -> tuple[Tensor, ...]:
        """A network's outputs on the crops of all pictures, few at a time so that they stay in the processor's cache."""
        outputs = []
        for part in range(0, max(len(found.image), 1), CROPS_PER_CALL):
            rows = slice(part, part + CROPS_PER_CALL)
            outputs.append(network(square_crops(pixels, found.image[rows], found.boxes[rows], size=size)))
        return tuple(torch.cat(output).cpu() for output in zip(*outputs, strict=True))


def _chunks(images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Runs of pictures with bounded memory, in order."""
    chunk: list[np.ndarray] = []
    size = 0
    for image in images:
        if chunk and (size + image.size > BYTES_PER_CHUNK or len(chunk) == IMAGES_PER_CHUNK):
            yield chunk
            chunk, size = [], 0
        chunk.append(image)
        size += image.size
    if chunk:
        yield chunk


def _shrunken(image: UInt8[Tensor, "_ _ 3"], max_side: int) -> UInt8[Tensor, "_ _ 3"]:
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    size = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    return resized(image.permute(2, 0, 1)[None], **size)[0].permute(1, 2, 0)


def _none() -> _Candidates:
    empty = torch.zeros(0)
    return _Candidates(torch.zeros(0, dtype=torch.int64), empty.view(0, 4), empty, empty.view(0, 4))
