"""Arithmetic of boxes: (x1, y1, x2, y2) in, regressed, squared or suppressed boxes out. A pixel i spans [i, i + 1).

Source: Zhang et al., arXiv:1604.02878, section II. Difference from common ports: coordinates are continuous, so there
is no `+ 1` on widths, and a box is rounded only where pixels are cut out.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import nms


def regressed(boxes: Float[Tensor, "n 4"], offsets: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """Boxes moved by offsets that are fractions of their width (x) and height (y)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * torch.cat([sides, sides], dim=1)


def squared(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4"]:
    """The square around the same centre with the longer side, on whole pixels and at least one wide."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True).round().clamp_min(1)
    corner = (centre - side / 2).round()
    return torch.cat([corner, corner + side], dim=1)


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
    """Like `suppressed`, by intersection over the smaller area, so that a box inside another falls."""
    kept = []
    for index in _members(groups):
        order = index[scores[index].argsort(descending=True, stable=True)]
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
    shared = (opposite - corner).clamp_min(0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=1)
    return shared / torch.minimum(area[:, None], area[None, :]).clamp_min(torch.finfo(boxes.dtype).tiny)
