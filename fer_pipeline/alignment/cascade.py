"""MTCNN over many pictures at once: RGB pictures of any sizes in, boxes, scores and five landmarks of each face out.

Source: Zhang et al., arXiv:1604.02878. P-Net runs over the scale pyramid, batched over pictures of equal size; R-Net
and O-Net run on the crops of all pictures together. Box arithmetic is on the CPU, pixels and networks on any device.
Pictures whose longer side exceeds `max_side` are searched in a shrunken copy.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from fer_pipeline.alignment.boxes import cells, regressed, squared, suppressed, suppressed_by_smaller, windows
from fer_pipeline.alignment.engines import Engine, load_networks, resolved
from fer_pipeline.alignment.networks import ProposalNet
from fer_pipeline.alignment.pyramid import CELL, LARGEST_SIDE, Pictures, pyramid_scales
from fer_pipeline.core.settings import Settings

VERSION = 1
PIXELS_PER_CALL = 200_000
CROPS_PER_CALL = 64
IMAGES_PER_CHUNK = 64
BYTES_PER_CHUNK = 6_000_000

Share = Annotated[float, Field(gt=0, lt=1)]


class DetectionSettings(Settings):
    """What is searched for; the defaults are the constants usual since the paper."""

    min_face: Annotated[int, Field(ge=CELL)] = 20  # side in pixels of the smallest face searched; larger is faster
    factor: Annotated[float, Field(ge=0.3, le=0.95)] = 0.709  # from one scale to the next
    thresholds: tuple[Share, Share, Share] = (0.6, 0.7, 0.7)  # face probability after P-, R- and O-Net
    nms: tuple[Share, Share, Share, Share] = (0.5, 0.7, 0.7, 0.7)  # in a scale, across scales, after R-, after O-Net
    # A candidate that reaches beyond the frame: "squeeze" resizes what is inside to the whole crop and scales the
    # result with the whole box, as other ports do (equal landmarks to 1e-4 of the eye distance); "pad" surrounds it
    # with grey, which puts the landmarks of faces that the frame cuts where they belong (median error 2 instead of 14 %
    # of the eye distance when faces seen whole are cut to their boxes) and finds two in a thousand fewer.
    beyond_frame: Literal["squeeze", "pad"] = "squeeze"
    max_side: Annotated[int, Field(ge=64, le=LARGEST_SIDE)] = 2048  # longer pictures are searched in a shrunken copy


@dataclass(frozen=True)
class FoundFace:
    """A face in pixels, zero-based: box (x1, y1, x2, y2), probability, and left eye, right eye, nose, mouth corners."""

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
    """The cascade with its weights on a device; an engine other than torch takes the CPU whatever the device."""

    def __init__(
        self,
        settings: DetectionSettings | None = None,
        *,
        device: str | torch.device = "cpu",
        engine: Engine = "auto",
    ) -> None:
        self.settings = settings or DetectionSettings()
        self.device = torch.device(device if resolved(engine) == "torch" else "cpu")
        self.networks = load_networks(engine, device=self.device)

    @torch.inference_mode()
    def find(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[FoundFace]]:
        """The faces of each picture, most certain first."""
        found: list[list[FoundFace]] = []
        for chunk in _chunks(images):
            found += self._find_in_chunk(chunk)
        return found

    def _find_in_chunk(self, images: Sequence[np.ndarray]) -> list[list[FoundFace]]:
        shrunk = [_shrunken(torch.tensor(image, device=self.device), self.settings.max_side) for image in images]
        pictures = Pictures.of(shrunk)
        faces, landmarks = self._output(pictures, self._refine(pictures, self._propose(pictures)))
        found: list[list[FoundFace]] = [[] for _ in images]
        for row in faces.scores.argsort(descending=True, stable=True).tolist():
            index = int(faces.image[row])
            stretch = np.divide(images[index].shape[1::-1], shrunk[index].shape[1::-1], dtype=np.float32)
            box = (faces.boxes[row].numpy().reshape(2, 2) - ((1, 1), (0, 0))) * stretch
            points = (landmarks[row].numpy() + 0.5) * stretch - 0.5  # the centre of the first pixel is 0
            found[index].append(
                FoundFace(box.ravel().astype(np.float32), float(faces.scores[row]), points.astype(np.float32))
            )
        return found

    def _propose(self, pictures: Pictures) -> _Candidates:
        """P-Net over the pyramids: suppressed within each scale, then across the scales of a picture."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, shape in enumerate(zip(pictures.heights.tolist(), pictures.widths.tolist(), strict=True)):
            by_shape[shape].append(index)
        rows, scale_numbers = [_none()], [torch.zeros(0, dtype=torch.int64)]
        for (height, width), members in by_shape.items():
            scales = pyramid_scales(height, width, min_face=self.settings.min_face, factor=self.settings.factor)
            if not scales:
                continue
            levels = pictures.pyramids(members, [(int(height * scale + 1), int(width * scale + 1)) for scale in scales])
            for number, (scale, level) in enumerate(zip(scales, levels, strict=True)):
                per_call = max(1, PIXELS_PER_CALL // (level.shape[2] * level.shape[3]))
                for first in range(0, len(members), per_call):
                    row = self._propose_at(level[first : first + per_call], scale=scale)
                    rows.append(row._replace(image=torch.tensor(members)[first + row.image]))
                    scale_numbers.append(torch.full_like(row.image, number))
        found = _Candidates(*map(torch.cat, zip(*rows, strict=True)))
        within = found.image * 1000 + torch.cat(scale_numbers)
        found = found.take(suppressed(found.boxes, found.scores, within, threshold=self.settings.nms[0]))
        found = found.take(suppressed(found.boxes, found.scores, found.image, threshold=self.settings.nms[1]))
        return found._replace(boxes=squared(regressed(found.boxes, found.offsets, inclusive=False)))

    def _propose_at(self, level: Float[Tensor, "n 3 h w"], *, scale: float) -> _Candidates:
        """The cells of one scale whose face probability passes; `image` is the row in the level."""
        level = level.contiguous(memory_format=torch.channels_last)
        outputs = self.networks.propose(level, threshold=self.settings.thresholds[0])
        places, scores, offsets = (output.cpu() for output in outputs)
        boxes = cells(places[:, 2], places[:, 1], scale=scale, stride=ProposalNet.STRIDE, cell=CELL)
        found = _Candidates(places[:, 0], boxes, scores, offsets)
        return found.take(scores > self.settings.thresholds[0])

    def _refine(self, pictures: Pictures, found: _Candidates) -> _Candidates:
        """R-Net on every proposal."""
        found, (scores, offsets) = self._on_crops(self.networks.refine, pictures, found, size=24)
        passed = scores > self.settings.thresholds[1]
        found = _Candidates(found.image, found.boxes, scores, offsets).take(passed)
        found = found.take(suppressed(found.boxes, found.scores, found.image, threshold=self.settings.nms[2]))
        return found._replace(boxes=squared(regressed(found.boxes, found.offsets, inclusive=True)))

    def _output(self, pictures: Pictures, found: _Candidates) -> tuple[_Candidates, Float[Tensor, "n 5 2"]]:
        """O-Net on what is left: the faces and their landmarks, which are fractions of the unregressed box."""
        found, (scores, offsets, points) = self._on_crops(self.networks.output, pictures, found, size=48)
        corner, side = found.boxes[:, None, :2], (found.boxes[:, 2:] - found.boxes[:, :2] + 1)[:, None]
        landmarks = corner - 1 + points.view(-1, 2, 5).transpose(1, 2) * side
        passed = scores > self.settings.thresholds[2]
        boxes = regressed(found.boxes, offsets, inclusive=True)
        found, landmarks = _Candidates(found.image, boxes, scores, offsets).take(passed), landmarks[passed]
        kept = suppressed_by_smaller(found.boxes, found.scores, found.image, threshold=self.settings.nms[3])
        return found.take(kept), landmarks[kept]

    def _on_crops(
        self, network: Callable[[Tensor], tuple[Tensor, ...]], pictures: Pictures, found: _Candidates, *, size: int
    ) -> tuple[_Candidates, list[Tensor]]:
        """A network's outputs on the crops of all pictures, and the candidates that lie in the frame at all.

        Candidates with the same pixels are run once: what makes one of them win must not be the noise of a batch.
        """
        pixels = windows(found.boxes)
        frame = torch.stack([pictures.widths[found.image], pictures.heights[found.image]], dim=1)
        inner = torch.cat([pixels[:, :2].clamp_min(0), pixels[:, 2:].minimum(frame)], dim=1)
        seen = (inner[:, 2:] > inner[:, :2]).all(dim=1)
        found, pixels = found.take(seen), (pixels if self.settings.beyond_frame == "pad" else inner)[seen]
        unique, back = torch.cat([found.image[:, None], pixels], dim=1).unique(dim=0, return_inverse=True)
        parts = [network(pictures.crops(part[:, 0], part[:, 1:], size=size)) for part in unique.split(CROPS_PER_CALL)]
        return found, [torch.cat(output).cpu()[back] for output in zip(*parts, strict=True)]


def find_faces(images: Sequence[UInt8[np.ndarray, "_ _ 3"]], detector: Detector) -> list[list[FoundFace]]:
    """The faces of RGB pictures of any sizes, most certain first; an empty list where there is none."""
    return detector.find(images)


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
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return (
        F.interpolate(image.permute(2, 0, 1)[None].float(), size=size, mode="area")[0].permute(1, 2, 0).to(torch.uint8)
    )


def _none() -> _Candidates:
    empty = torch.zeros(0)
    return _Candidates(torch.zeros(0, dtype=torch.int64), empty.view(0, 4), empty, empty.view(0, 4))
