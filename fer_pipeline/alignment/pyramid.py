"""Pixels for the networks: RGB pictures in, shrunken pictures and crops as normalised floats out, on any device.

Everything is read from summed-area tables, so that an area resize costs four look-ups an output pixel whatever it
shrinks, is exact in integers, and one call cuts crops of any size out of pictures of any size. The bins are those of
torch's area interpolation (whole pixels, overlapping where sizes do not divide), which other ports use.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fer_pipeline.alignment.boxsums import BITS, BoxSums

CELL = 12  # side in pixels of the smallest face that P-Net sees
LARGEST_SIDE = 2800  # the sums of a square picture of this side are whole numbers in 32-bit floats


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
    """Pictures as summed-area tables, one behind the other; table t has a row and a column of zeros in front.

    The sums of the three colours of a pixel stand in one integer, so that one look-up reads them all; see `BoxSums`.
    """

    tables: Int64[Tensor, " p"]
    starts: Int64[Tensor, " t"]
    heights: Int64[Tensor, " t"]
    widths: Int64[Tensor, " t"]

    @classmethod
    def of(cls, images: Sequence[UInt8[Tensor, "_ _ 3"]]) -> "Pictures":
        """The tables of a list of pictures of any sizes."""
        shapes = torch.tensor([image.shape[:2] for image in images])
        sizes = (shapes + 1).prod(dim=1)
        tables = torch.zeros(int(sizes.sum()), dtype=torch.int64, device=images[0].device)
        for image, flat in zip(images, tables.split(sizes.tolist()), strict=True):
            table = flat.view(image.shape[0] + 1, image.shape[1] + 1)
            red, green, blue = image.unbind(dim=2)
            packed = blue.long().bitwise_left_shift_(BITS).add_(green)
            table[1:, 1:] = packed.bitwise_left_shift_(BITS).add_(red)
            table.cumsum_(1).cumsum_(0)
        return cls(tables, sizes.cumsum(0) - sizes, shapes[:, 0], shapes[:, 1])

    def pyramids(self, members: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Float[Tensor, "n 3 _ _"]]:
        """Pictures of one shape, resized to each of the sizes (height, width); each pixel's colours are neighbours.

        A picture is shrunk to all sizes at once, while its table is in the cache.
        """
        device = self.tables.device
        h, w = int(self.heights[members[0]]), int(self.widths[members[0]])
        grids = [(_bins(h, height), _bins(w, width)) for height, width in sizes]
        boxes = BoxSums.joined([BoxSums.between(*grid, pitch=w + 1, device=device) for grid in grids])
        areas = torch.cat([_areas(*grid).flatten() for grid in grids]).to(device)
        out = torch.empty((len(members), len(areas), 3), device=device)
        for row, member in enumerate(members):
            table = self.tables.narrow(0, int(self.starts[member]), (h + 1) * (w + 1))
            for channel, sums in enumerate(boxes.colours(table)):
                out[row, :, channel] = sums.div_(areas).sub_(127.5).mul_(1 / 128)
        levels = out.split([height * width for height, width in sizes], dim=1)
        return [level.unflatten(1, size).permute(0, 3, 1, 2) for level, size in zip(levels, sizes, strict=True)]

    def crops(
        self, image: Int64[Tensor, " n"], windows: Int64[Tensor, "n 4"], *, size: int
    ) -> Float[Tensor, "n 3 {size} {size}"]:
        """Windows (x1, y1, x2, y2) of whole pixels of picture `image`, resized; mid-grey outside the frame."""
        device = self.tables.device
        steps = torch.arange(size)
        corner, spans = windows[:, :2, None], (windows[:, 2:] - windows[:, :2])[..., None]
        near, far = corner + steps * spans // size, corner - (-(steps + 1) * spans // size)
        area = 128 * _areas((near[:, 1], far[:, 1]), (near[:, 0], far[:, 0]))
        frame = torch.stack([self.widths[image], self.heights[image]], dim=1)[..., None]
        near, far = near.clamp_min(0).minimum(frame), far.clamp_min(0).minimum(frame)
        rows, columns = (near[:, 1], far[:, 1]), (near[:, 0], far[:, 0])
        grey = 127.5 * _areas(rows, columns)
        pitch, start = self.widths[image, None] + 1, self.starts[image, None]
        boxes = BoxSums.between(rows, columns, pitch=pitch, start=start, device=device)
        grey, area = grey.to(device), area.to(device)
        out = torch.empty((len(image), size, size, 3), device=device)
        for channel, sums in enumerate(boxes.colours(self.tables)):
            out[..., channel] = sums.view(area.shape).sub_(grey).div_(area)
        return out.permute(0, 3, 1, 2)


def _bins(inner: int, outer: int) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"]]:
    """Where each of `outer` bins over `inner` pixels begins and ends."""
    steps = torch.arange(outer)
    return steps * inner // outer, -(-(steps + 1) * inner // outer)


def _areas(
    rows: tuple[Int64[Tensor, "*n y"], Int64[Tensor, "*n y"]],
    columns: tuple[Int64[Tensor, "*n x"], Int64[Tensor, "*n x"]],
) -> Float[Tensor, "*n y x"]:
    heights, widths = (ends - begins for begins, ends in (rows, columns))
    return (heights[..., :, None] * widths[..., None, :]).float()
