"""Arithmetic of boxes: (x1, y1, x2, y2) in; cells, regressed, squared or suppressed boxes out.

Source: Zhang et al., arXiv:1604.02878, section II, in the one-based inclusive pixel coordinates of the authors' MATLAB
code, with its rounding and its `+ 1` on widths where it has them: other implementations keep them too, and which of
several overlapping candidates wins, and so the landmarks, depends on them.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fer_pipeline.alignment.suppression import nms


def cells(
    x: Int64[Tensor, " n"], y: Int64[Tensor, " n"], *, scale: float, stride: int, cell: int
) -> Float[Tensor, "n 4"]:
    """The boxes of P-Net's cells in the unscaled picture."""
    corner = torch.stack([x, y], dim=1).float() * stride
    return (torch.cat([corner + 1, corner + cell], dim=1) / scale).floor()


def regressed(boxes: Float[Tensor, "n 4"], offsets: Float[Tensor, "n 4"], *, inclusive: bool) -> Float[Tensor, "n 4"]:
    """Boxes moved by offsets that are fractions of their width (x) and height (y)."""
    sides = boxes[:, 2:] - boxes[:, :2] + float(inclusive)
    return boxes + offsets * sides.repeat(1, 2)


def squared(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """The square around the same centre with the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = sides.amax(dim=1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - side * 0.5
    return torch.cat([corner, corner + side], dim=1)


def windows(boxes: Float[Tensor, "n 4"]) -> Int64[Tensor, "n 4"]:
    """The pixels of boxes, zero-based, the ends not included; at least one pixel each."""
    pixels = boxes.floor().long()
    corner = pixels[:, :2] - 1
    return torch.cat([corner, torch.maximum(pixels[:, 2:], corner + 1)], dim=1)


def suppressed(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], groups: Int64[Tensor, " n"], *, threshold: float
) -> Int64[Tensor, " k"]:
    """Non-maximum suppression by intersection over union within each group: the kept indices, group by group.

    Groups are handled one at a time: shifting them apart in one call, as is common, makes the result depend on what
    else is in the batch, by the rounding of the shifted coordinates.
    """
    kept = [index[nms(boxes[index], scores[index], threshold)] for index in _members(groups)]
    return torch.cat(kept) if kept else groups


def suppressed_by_smaller(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], groups: Int64[Tensor, " n"], *, threshold: float
) -> Int64[Tensor, " k"]:
    """Like `suppressed`, by intersection over the smaller area, so that a box inside another falls.

    Of equal scores the later wins, as in ports that sort upwards and take from the end.
    """
    kept = []
    for index in _members(groups):
        order = index[scores[index].argsort(stable=True).flip(0)]
        overlap = _overlap_by_smaller(boxes[order])
        alive = torch.ones(len(order), dtype=torch.bool)
        for row in range(len(order)):
            if alive[row]:
                alive[row + 1 :] &= overlap[row, row + 1 :] <= threshold
        kept.append(order[alive])
    return torch.cat(kept) if kept else groups


def _members(groups: Int64[Tensor, " n"]) -> Iterator[Int64[Tensor, " m"]]:
    if len(groups) == 0:
        return iter(())
    order = groups.argsort(stable=True)
    _, counts = groups[order].unique_consecutive(return_counts=True)
    return iter(order.split(counts.tolist()))


def _overlap_by_smaller(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n n"]:
    corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (opposite - corner + 1).clamp_min(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    return shared / torch.minimum(area[:, None], area[None, :])
