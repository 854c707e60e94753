"""Pixels for the networks: RGB pictures in, shrunken pictures and crops as normalised floats out, on any device.

Everything is read from summed-area tables, so that an area resize costs four look-ups an output pixel whatever it
shrinks, is exact in integers, and one call cuts crops of any size out of pictures of any size. The bins are those of
torch's area interpolation (whole pixels, overlapping where sizes do not divide), which other ports use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor

CELL = 12  # side in pixels of the smallest face that P-Net sees
LARGEST_SIDE = 2800  # the sums of a square picture of this side fit 32 bits


def pyramid_scales(height: int, width: int, *, min_face: int, factor: float) -> list[float]:
    """Scales from the one that makes the smallest wanted face one cell, down to where the picture is one cell."""
    scale = CELL / min_face
    found = []
    while min(height, width) * scale >= CELL:
        found.append(scale)
        scale *= factor
    return found


@dataclass(frozen=True)
class Pictures:
    """Pictures as summed-area tables, one behind the other; table t has a row and a column of zeros in front."""

    tables: Int[Tensor, "p 3"]
    starts: Int64[Tensor, " t"]
    heights: Int64[Tensor, " t"]
    widths: Int64[Tensor, " t"]

    @classmethod
    def of(cls, images: Sequence[UInt8[Tensor, "_ _ 3"]]) -> "Pictures":
        """The tables of a list of pictures of any sizes."""
        shapes = torch.tensor([image.shape[:2] for image in images])
        sizes = (shapes + 1).prod(dim=1)
        tables = torch.zeros((int(sizes.sum()), 3), dtype=torch.int32, device=images[0].device)
        for image, table in zip(images, tables.split(sizes.tolist()), strict=True):
            inner = table.view(image.shape[0] + 1, image.shape[1] + 1, 3)[1:, 1:]
            inner.copy_(image).cumsum_(0).cumsum_(1)
        return cls(tables, sizes.cumsum(0) - sizes, shapes[:, 0], shapes[:, 1])

    def shrunk(self, members: Sequence[int], *, height: int, width: int) -> Float[Tensor, "n 3 {height} {width}"]:
        """Pictures of one shape, resized to another; channels last in memory."""
        h, w = int(self.heights[members[0]]), int(self.widths[members[0]])
        top, bottom = (edge.to(self.tables.device) for edge in _bins(h, height))
        left, right = (edge.to(self.tables.device) for edge in _bins(w, width))
        area = (bottom - top)[:, None, None] * (right - left)[:, None]
        out = torch.empty((len(members), height, width, 3), device=self.tables.device)
        for row, member in enumerate(members):
            start = int(self.starts[member])
            table = self.tables[start : start + (h + 1) * (w + 1)].view(h + 1, w + 1, 3)
            bands = table.index_select(0, bottom) - table.index_select(0, top)
            torch.div(bands.index_select(1, right) - bands.index_select(1, left), area, out=out[row])
        return out.sub_(127.5).mul_(1 / 128).permute(0, 3, 1, 2)

    def crops(
        self, image: Int64[Tensor, " n"], windows: Int64[Tensor, "n 4"], *, size: int
    ) -> Float[Tensor, "n 3 {size} {size}"]:
        """Windows (x1, y1, x2, y2) of whole pixels of picture `image`, resized; mid-grey outside the frame."""
        steps = torch.arange(size)
        corner, spans = windows[:, :2, None], (windows[:, 2:] - windows[:, :2])[..., None]
        near, far = corner + steps * spans // size, corner - (-(steps + 1) * spans // size)
        area = _products(far - near)
        frame = torch.stack([self.widths[image], self.heights[image]], dim=1)[..., None]
        near, far = near.clamp_min(0).minimum(frame), far.clamp_min(0).minimum(frame)
        inside = _products(far - near)
        start, pitch = self.starts[image, None], self.widths[image, None] + 1
        above, below = start + near[:, 1] * pitch, start + far[:, 1] * pitch
        sums = self._at(below, far[:, 0]) - self._at(below, near[:, 0])
        sums -= self._at(above, far[:, 0]) - self._at(above, near[:, 0])
        area, inside = area.to(sums.device), inside.to(sums.device)
        return ((sums - 127.5 * inside) / (128 * area)).permute(0, 3, 1, 2)

    def _at(self, rows: Int64[Tensor, "n y"], columns: Int64[Tensor, "n x"]) -> Int[Tensor, "n y x 3"]:
        index = rows[:, :, None] + columns[:, None, :]
        return self.tables.index_select(0, index.flatten().to(self.tables.device)).view(*index.shape, 3)


def _bins(inner: int, outer: int) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    steps = torch.arange(outer)
    return steps * inner // outer, -(-(steps + 1) * inner // outer)


def _products(spans: Int64[Tensor, "n 2 s"]) -> Float[Tensor, "n s s 1"]:
    """Areas from widths (x) and heights (y)."""
    return (spans[:, 1, :, None] * spans[:, 0, None, :]).float()[..., None]
