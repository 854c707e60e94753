"""Compute with boxes (x1, y1, x2, y2): place, regress, square and suppress them.

Source: Zhang et al., arXiv:1604.02878, section II, in the one-based inclusive pixel coordinates of the authors' MATLAB
code, with its rounding and its `+ 1` on widths where it has them: other implementations keep them too, and which of
several overlapping candidates wins, and so the landmarks, depends on them.

Non-maximum suppression is torchvision's compiled operator without the rest of torchvision: `import torchvision` brings
every model and torch's compiler with it, two seconds of CPU in each process that looks for faces.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Boxes = Float[Tensor, "n 4"]
Scores = Float[Tensor, " n"]
Indices = Int64[Tensor, " n"]


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
