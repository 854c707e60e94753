"""Resize pictures and cut crops out of them by area averaging, as normalised floats, on any device.

Everything is read from summed-area tables, so that an area resize costs four look-ups an output pixel whatever it
shrinks, is exact in integers, and one call cuts crops of any size out of pictures of any size. The bins are those of
torch's area interpolation (whole pixels, overlapping where sizes do not divide), which other ports use.

A table holds one integer of 64 bits a pixel, with 21 bits for each colour. They overflow into each other, but the sum
of a box, which is four of them added and subtracted, is right as long as no colour of the box reaches 2 ** 21. Boxes of
more pixels than that allows are read in parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64, UInt8
from torch import Tensor

BITS = 21
MAX_PIXELS = (2**BITS - 1) // 255  # of a box that is read in one part
MAX_SIDE = 2800  # the sums of a square picture of this side are whole numbers in 32-bit floats
CELL = 12  # side in pixels of the smallest face that P-Net sees

Bounds = tuple[Int64[Tensor, "*n _"], Int64[Tensor, "*n _"]]  # where rows or columns begin and end (not included)


def pyramid_scales(height: int, width: int, *, min_face: int, factor: float) -> list[float]:
    """Returns scales from that which makes the smallest wanted face one cell to that which makes the picture one."""
    scales = [CELL / min_face]
    while min(height, width) * scales[-1] >= CELL:
        scales.append(scales[-1] * factor)
    return scales[:-1]


@dataclass(frozen=True)
class BoxSums:
    """Boxes by the flat indices of their corners: above left, above right, below left, below right.

    `runs` are (boxes, parts): of each run all first parts stand in front, then all second parts, and so on.
    """

    corners: Int32[Tensor, "4 k"]
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def from_grid(
        cls,
        rows: Bounds,
        columns: Bounds,
        *,
        pitch: int | Int64[Tensor, "n 1"],
        start: int | Int64[Tensor, "n 1"] = 0,
        device: torch.device | str = "cpu",
    ) -> "BoxSums":
        """Makes the boxes between rows and columns of pixels, row by row, as many grids as there are tables.

        `pitch` is how many numbers a row of each table has, `start` where each table begins, `device` where they are.
        """
        (top, bottom), (left, right) = rows, columns
        heights = bottom - top
        largest = int(heights.max()) * int((right - left).max()) if heights.numel() else 0
        parts = max(1, -(-largest // MAX_PIXELS))
        edges = torch.stack([(top + heights * part // parts) * pitch + start for part in range(parts + 1)])
        ends = [edge.int().to(device)[..., :, None] for edge in (edges[:-1], edges[1:])]
        sides = [side.int().to(device)[..., None, :] for side in (left, right)]
        corners = torch.stack([(end + side).flatten() for end in ends for side in sides])
        return cls(corners, ((corners.shape[1] // parts, parts),))

    @classmethod
    def concatenate(cls, boxes: "Sequence[BoxSums]") -> "BoxSums":
        """Joins many into one, in order."""
        return cls(torch.cat([one.corners for one in boxes], dim=1), tuple(run for one in boxes for run in one.runs))

    def sum_channels(self, tables: Int64[Tensor, " p"]) -> Iterator[Float[Tensor, " b"]]:
        """Yields the sum of each box: first of red, then of green, then of blue."""
        above_left, above_right, below_left, below_right = self.corners
        packed = tables.index_select(0, below_right)
        packed -= tables.index_select(0, below_left)
        packed -= tables.index_select(0, above_right)
        packed += tables.index_select(0, above_left)
        for channel in range(3):
            sums = (packed >> BITS * channel & 2**BITS - 1).int().float()  # by way of 32 bits, which is the fast way
            if any(parts > 1 for _, parts in self.runs):
                runs = zip(sums.split([boxes * parts for boxes, parts in self.runs]), self.runs, strict=True)
                sums = torch.cat([run.view(parts, -1).sum(dim=0) for run, (_, parts) in runs])
            yield sums


@dataclass(frozen=True)
class SummedAreaTables:
    """Pictures as summed-area tables, one behind the other; table t has a row and a column of zeros in front."""

    tables: Int64[Tensor, " p"]
    starts: Int64[Tensor, " t"]
    heights: Int64[Tensor, " t"]
    widths: Int64[Tensor, " t"]

    @classmethod
    def from_images(cls, images: Sequence[UInt8[Tensor, "_ _ 3"]]) -> "SummedAreaTables":
        """Builds the tables of a list of pictures of any sizes."""
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

    def resize(self, members: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Float[Tensor, "n 3 _ _"]]:
        """Resizes pictures of one shape to each of the sizes (height, width); each pixel's colours are neighbours.

        A picture is resized to all sizes at once, while its table is in the cache.
        """
        device = self.tables.device
        h, w = int(self.heights[members[0]]), int(self.widths[members[0]])
        grids = [(_bins(h, height), _bins(w, width)) for height, width in sizes]
        boxes = BoxSums.concatenate([BoxSums.from_grid(*grid, pitch=w + 1, device=device) for grid in grids])
        areas = torch.cat([_areas(*grid).flatten() for grid in grids]).to(device)
        out = torch.empty((len(members), len(areas), 3), device=device)
        for row, member in enumerate(members):
            table = self.tables.narrow(0, int(self.starts[member]), (h + 1) * (w + 1))
            for channel, sums in enumerate(boxes.sum_channels(table)):
                out[row, :, channel] = sums.div_(areas).sub_(127.5).mul_(1 / 128)
        levels = out.split([height * width for height, width in sizes], dim=1)
        return [level.unflatten(1, size).permute(0, 3, 1, 2) for level, size in zip(levels, sizes, strict=True)]

    def crop(
        self, image: Int64[Tensor, " n"], windows: Int64[Tensor, "n 4"], *, size: int
    ) -> Float[Tensor, "n 3 {size} {size}"]:
        """Resizes windows (x1, y1, x2, y2) of whole pixels of picture `image`; mid-grey outside the frame."""
        device = self.tables.device
        corner, spans = windows[:, :2, None], (windows[:, 2:] - windows[:, :2])[..., None]
        near, far = (corner + ends for ends in _bins(spans, size))
        area = 128 * _areas((near[:, 1], far[:, 1]), (near[:, 0], far[:, 0]))
        frame = torch.stack([self.widths[image], self.heights[image]], dim=1)[..., None]
        near, far = near.clamp_min(0).minimum(frame), far.clamp_min(0).minimum(frame)
        rows, columns = (near[:, 1], far[:, 1]), (near[:, 0], far[:, 0])
        grey = 127.5 * _areas(rows, columns)
        pitch, start = self.widths[image, None] + 1, self.starts[image, None]
        boxes = BoxSums.from_grid(rows, columns, pitch=pitch, start=start, device=device)
        grey, area = grey.to(device), area.to(device)
        out = torch.empty((len(image), size, size, 3), device=device)
        for channel, sums in enumerate(boxes.sum_channels(self.tables)):
            out[..., channel] = sums.view(area.shape).sub_(grey).div_(area)
        return out.permute(0, 3, 1, 2)


def _bins(inner: int | Int64[Tensor, "*n 1"], outer: int) -> Bounds:
    """Returns where each of `outer` bins over `inner` pixels begins and ends."""
    steps = torch.arange(outer)
    return steps * inner // outer, -(-(steps + 1) * inner // outer)


def _areas(rows: Bounds, columns: Bounds) -> Float[Tensor, "*n y x"]:
    heights, widths = (ends - begins for begins, ends in (rows, columns))
    return (heights[..., :, None] * widths[..., None, :]).float()
