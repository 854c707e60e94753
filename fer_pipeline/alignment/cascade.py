"""Detect faces by MTCNN in many pictures at once: boxes, scores and five landmarks for RGB pictures of any sizes.

Source: Zhang et al., arXiv:1604.02878. P-Net runs over the scale pyramid, batched over pictures of equal size; R-Net
and O-Net run on the crops of all pictures together. Box arithmetic is on the CPU, pixels and networks on any device.
Pictures whose longer side exceeds `max_side` are searched in a shrunken copy. `VERSION` is raised when another face,
box or landmark comes out of the same picture.

Boxes (x1, y1, x2, y2) are in the one-based inclusive pixel coordinates of the authors' MATLAB code (section II), with
its rounding and its `+ 1` on widths where it has them: other implementations keep them too, and which of several
overlapping candidates wins, and so the landmarks, depends on them.

Non-maximum suppression is torchvision's compiled operator without the rest of torchvision: `import torchvision` brings
every model and torch's compiler with it, two seconds of CPU in each process that looks for faces.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64, UInt8
from pydantic import Field
from torch import Tensor

from fer_pipeline.alignment.networks import Engine, ProposalNet, load_networks, resolve_engine
from fer_pipeline.alignment.resize import CELL, MAX_SIDE, SummedAreaTables, pyramid_scales
from fer_pipeline.core.settings import Settings

VERSION = 1
PIXELS_PER_CALL = 200_000
CROPS_PER_CALL = 64
IMAGES_PER_CHUNK = 64
BYTES_PER_CHUNK = 6_000_000

Boxes = Float[Tensor, "n 4"]
Scores = Float[Tensor, " n"]
Indices = Int64[Tensor, " n"]
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
    max_side: Annotated[int, Field(ge=64, le=MAX_SIDE)] = 2048  # longer pictures are searched in a shrunken copy


@dataclass(frozen=True)
class DetectedFace:
    """A face in pixels, zero-based: box (x1, y1, x2, y2), probability, and left eye, right eye, nose, mouth corners."""

    box: Float32[np.ndarray, "4"]
    score: float
    landmarks: Float32[np.ndarray, "5 2"]


class _Candidates(NamedTuple):
    """Boxes over a list of pictures, each with the index of its picture, its face probability and its regression."""

    image: Indices
    boxes: Boxes
    scores: Scores
    offsets: Boxes

    def take(self, index: Tensor) -> "_Candidates":
        return _Candidates(*(field[index] for field in self))

    def suppress(self, groups: Indices, threshold: float) -> "_Candidates":
        return self.take(suppress(self.boxes, self.scores, groups, threshold=threshold))


class Detector:
    """The cascade with its weights on a device; an engine other than torch takes the CPU whatever the device."""

    def __init__(
        self, settings: DetectionSettings | None = None, *, device: str | torch.device = "cpu", engine: Engine = "auto"
    ) -> None:
        self.settings = settings or DetectionSettings()
        self.device = torch.device(device if resolve_engine(engine) == "torch" else "cpu")
        self.networks = load_networks(engine, device=self.device)

    @torch.inference_mode()
    def detect(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[list[DetectedFace]]:
        """Returns the faces of each RGB picture, most certain first; an empty list where there is none."""
        return [faces for chunk in _chunks(images) for faces in self._detect_in_chunk(chunk)]

    def _detect_in_chunk(self, images: Sequence[np.ndarray]) -> list[list[DetectedFace]]:
        shrunk = [_shrink(image, self.settings.max_side, self.device) for image in images]
        pictures = SummedAreaTables.from_images(shrunk)
        candidates = self._propose(pictures)
        candidates, (scores, offsets) = self._run_on_crops(self.networks.rnet, pictures, candidates, size=24)
        candidates = candidates._replace(scores=scores, offsets=offsets).take(scores > self.settings.thresholds[1])
        candidates = candidates.suppress(candidates.image, self.settings.nms[2])
        candidates = candidates._replace(
            boxes=make_square(regress(candidates.boxes, candidates.offsets, inclusive=True))
        )
        candidates, outputs = self._run_on_crops(self.networks.onet, pictures, candidates, size=48)
        scores, offsets, points = outputs
        boxes, passed = candidates.boxes, scores > self.settings.thresholds[2]
        side = (boxes[:, 2:] - boxes[:, :2] + 1)[:, None]  # landmarks are fractions of the box before its regression
        landmarks = boxes[:, None, :2] - 1 + points.view(-1, 2, 5).transpose(1, 2) * side
        faces = _Candidates(candidates.image, regress(boxes, offsets, inclusive=True), scores, offsets).take(passed)
        index = suppress_by_smaller(faces.boxes, faces.scores, faces.image, threshold=self.settings.nms[3])
        faces, landmarks = faces.take(index), landmarks[passed][index]
        detected: list[list[DetectedFace]] = [[] for _ in images]
        for row in faces.scores.argsort(descending=True, stable=True).tolist():
            index = int(faces.image[row])
            stretch = np.divide(images[index].shape[1::-1], shrunk[index].shape[1::-1], dtype=np.float32)
            box = (faces.boxes[row].numpy().reshape(2, 2) - ((1, 1), (0, 0))) * stretch
            points = (landmarks[row].numpy() + 0.5) * stretch - 0.5  # the centre of the first pixel is 0
            detected[index].append(
                DetectedFace(box.ravel().astype(np.float32), float(faces.scores[row]), points.astype(np.float32))
            )
        return detected

    def _propose(self, pictures: SummedAreaTables) -> _Candidates:
        """Runs P-Net over the pyramids: suppressed within each scale, then across the scales of a picture."""
        settings = self.settings
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, shape in enumerate(zip(pictures.heights.tolist(), pictures.widths.tolist(), strict=True)):
            by_shape[shape].append(index)
        none, empty = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        rows, scale_numbers = [_Candidates(none, empty.view(0, 4), empty, empty.view(0, 4))], [none]
        for (height, width), members in by_shape.items():
            scales = pyramid_scales(height, width, min_face=settings.min_face, factor=settings.factor)
            if not scales:
                continue
            levels = pictures.resize(members, [(int(height * scale + 1), int(width * scale + 1)) for scale in scales])
            for number, (scale, level) in enumerate(zip(scales, levels, strict=True)):
                per_call = max(1, PIXELS_PER_CALL // (level.shape[2] * level.shape[3]))
                for first in range(0, len(members), per_call):
                    part = level[first : first + per_call].contiguous(memory_format=torch.channels_last)
                    outputs = self.networks.pnet.propose(part, threshold=settings.thresholds[0])
                    places, scores, offsets = (output.cpu() for output in outputs)
                    boxes = place_cells(places[:, 2], places[:, 1], scale=scale, stride=ProposalNet.STRIDE, cell=CELL)
                    image = torch.tensor(members)[first + places[:, 0]]
                    rows.append(_Candidates(image, boxes, scores, offsets).take(scores > settings.thresholds[0]))
                    scale_numbers.append(torch.full_like(rows[-1].image, number))
        candidates = _Candidates(*map(torch.cat, zip(*rows, strict=True)))
        candidates = candidates.suppress(candidates.image * 1000 + torch.cat(scale_numbers), settings.nms[0])
        candidates = candidates.suppress(candidates.image, settings.nms[1])
        boxes = make_square(regress(candidates.boxes, candidates.offsets, inclusive=False))
        return candidates._replace(boxes=boxes)

    def _run_on_crops(
        self,
        network: Callable[[Tensor], tuple[Tensor, ...]],
        pictures: SummedAreaTables,
        candidates: _Candidates,
        *,
        size: int,
    ) -> tuple[_Candidates, list[Tensor]]:
        """Returns the candidates that lie in the frame at all, and a network's outputs on their crops.

        Candidates with the same pixels are run once: what makes one of them win must not be the noise of a batch.
        """
        pixels = to_pixels(candidates.boxes)
        frame = torch.stack([pictures.widths[candidates.image], pictures.heights[candidates.image]], dim=1)
        inner = torch.cat([pixels[:, :2].clamp_min(0), pixels[:, 2:].minimum(frame)], dim=1)
        visible = (inner[:, 2:] > inner[:, :2]).all(dim=1)
        candidates = candidates.take(visible)
        pixels = (pixels if self.settings.beyond_frame == "pad" else inner)[visible]
        unique, back = torch.cat([candidates.image[:, None], pixels], dim=1).unique(dim=0, return_inverse=True)
        parts = [network(pictures.crop(part[:, 0], part[:, 1:], size=size)) for part in unique.split(CROPS_PER_CALL)]
        return candidates, [torch.cat(output).cpu()[back] for output in zip(*parts, strict=True)]


def _chunks(images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yields runs of pictures with bounded memory, in order."""
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


def _shrink(image: UInt8[np.ndarray, "_ _ 3"], max_side: int, device: torch.device) -> UInt8[Tensor, "_ _ 3"]:
    """Returns the picture on the device, its longer side at most `max_side`."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return torch.tensor(image, device=device)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if device.type == "cpu":
        return torch.from_numpy(_average_areas(image, *size))
    pixels = F.interpolate(torch.tensor(image, device=device).permute(2, 0, 1)[None].float(), size=size, mode="area")
    return pixels[0].permute(1, 2, 0).to(torch.uint8)


def _average_areas(image: UInt8[np.ndarray, "_ _ 3"], height: int, width: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """Does what torch's area interpolation does, to the bit, a row at a time: that takes 15 bytes a pixel of floats."""
    (top, bottom), (left, right) = (
        (np.arange(inner) * outer // inner, -(np.arange(1, inner + 1) * -outer // inner))
        for inner, outer in ((height, image.shape[0]), (width, image.shape[1]))
    )
    shrunk, sums = np.empty((height, width, 3), np.uint8), np.zeros((image.shape[1] + 1, 3), np.int64)
    columns = (right - left).astype(np.float32)[:, None]
    for row in range(height):
        np.cumsum(image[top[row] : bottom[row]].sum(axis=0, dtype=np.int64), axis=0, out=sums[1:])
        rows = np.float32(bottom[row] - top[row])
        shrunk[row] = (sums[right] - sums[left]).astype(np.float32) / rows / columns
    return shrunk


def place_cells(x: Indices, y: Indices, *, scale: float, stride: int, cell: int) -> Boxes:
    """Returns the boxes of P-Net's cells in the unscaled picture."""
    corner = torch.stack([x, y], dim=1).float() * stride
    return (torch.cat([corner + 1, corner + cell], dim=1) / scale).floor()


def regress(boxes: Boxes, offsets: Boxes, *, inclusive: bool) -> Boxes:
    """Moves boxes by offsets that are fractions of their width (x) and height (y)."""
    sides = boxes[:, 2:] - boxes[:, :2] + float(inclusive)
    return boxes + offsets * sides.repeat(1, 2)


def make_square(boxes: Boxes) -> Boxes:
    """Returns the squares around the same centres with the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - side * 0.5
    return torch.cat([corner, corner + side], dim=1)


def to_pixels(boxes: Boxes) -> Int64[Tensor, "n 4"]:
    """Returns the pixels of boxes, zero-based, the ends not included; at least one pixel each."""
    pixels = boxes.floor().long()
    corner = pixels[:, :2] - 1
    return torch.cat([corner, torch.maximum(pixels[:, 2:], corner + 1)], dim=1)


def suppress(boxes: Boxes, scores: Scores, groups: Indices, *, threshold: float) -> Int64[Tensor, " k"]:
    """Suppresses by intersection over union within each group: the indices that stay, group by group, best first.

    Groups are handled one at a time: shifting them apart in one call, as is common, makes the result depend on what
    else is in the batch, by the rounding of the shifted coordinates.
    """
    return _for_each_group(groups, lambda i: i[torch.ops.torchvision.nms(boxes[i], scores[i], threshold)])


def suppress_by_smaller(boxes: Boxes, scores: Scores, groups: Indices, *, threshold: float) -> Int64[Tensor, " k"]:
    """Suppresses like `suppress`, by intersection over the smaller area, so that a box inside another is removed.

    Of equal scores the later wins, as in ports that sort upwards and take from the end.
    """

    def suppress_group(index: Int64[Tensor, " m"]) -> Int64[Tensor, " k"]:
        order = index[scores[index].argsort(stable=True).flip(0)]
        corner, opposite = boxes[order].split(2, dim=1)
        shared = torch.minimum(opposite[:, None], opposite) - torch.maximum(corner[:, None], corner)
        area = (opposite - corner + 1).prod(dim=1)
        overlap = (shared + 1).clamp_min(0).prod(dim=2) / torch.minimum(area[:, None], area)
        alive = torch.ones(len(order), dtype=torch.bool)
        for row in range(len(order)):
            if alive[row]:
                alive[row + 1 :] &= overlap[row, row + 1 :] <= threshold
        return order[alive]

    return _for_each_group(groups, suppress_group)


def _for_each_group(groups: Indices, suppress_group: Callable[[Tensor], Tensor]) -> Int64[Tensor, " k"]:
    if len(groups) == 0:
        return groups
    order = groups.argsort(stable=True)
    _, counts = groups[order].unique_consecutive(return_counts=True)
    return torch.cat([suppress_group(index) for index in order.split(counts.tolist())])


def _load_operators() -> None:
    """Makes `torch.ops.torchvision` known; a package that keeps its operators elsewhere is imported whole."""
    spec = find_spec("torchvision")  # looks for it and does not run it
    folders = spec.submodule_search_locations if spec else None
    for library in sorted(path for folder in folders or () for path in Path(folder).glob("_C*") if path.is_file()):
        try:
            torch.ops.load_library(library)
        except OSError:  # built for another torch: the import says so better
            break
    if not hasattr(torch.ops.torchvision, "nms"):
        import torchvision.ops  # noqa: F401


_load_operators()
