"""Sums of the pixels of many boxes: corners in, the sums of red, green and blue out, read from summed-area tables.

A table holds one integer of 64 bits a pixel, with 21 bits for each colour. They overflow into each other, but the sum
of a box, which is four of them added and subtracted, is right as long as no colour of the box reaches 2 ** 21. Boxes of
more pixels than that allows are read in parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

BITS = 21
LARGEST = (2**BITS - 1) // 255  # pixels


@dataclass(frozen=True)
class BoxSums:
    """Boxes by the flat indices of their corners: above left, above right, below left, below right.

    A run of boxes is read in so many `parts`, each as long as the run.
    """

    corners: Int32[Tensor, "4 k"]
    lengths: tuple[int, ...]
    parts: tuple[int, ...]

    @classmethod
    def between(
        cls,
        rows: tuple[Int64[Tensor, "*n y"], Int64[Tensor, "*n y"]],
        columns: tuple[Int64[Tensor, "*n x"], Int64[Tensor, "*n x"]],
        *,
        pitch: int | Int64[Tensor, "n 1"],
        start: int | Int64[Tensor, "n 1"] = 0,
        device: torch.device | str = "cpu",
    ) -> "BoxSums":
        """The boxes between rows and columns of pixels, row by row, as many grids as there are tables.

        Args:
            rows: Where boxes begin and where they end; the end is not included.
            columns: The same across.
            pitch: How many numbers a row of each table has.
            start: Where each table begins.
            device: Where the tables are.
        """
        (top, bottom), (left, right) = rows, columns
        heights = bottom - top
        largest = int(heights.max()) * int((right - left).max()) if heights.numel() else 0
        parts = max(1, -(-largest // LARGEST))
        edges = torch.stack([(top + heights * part // parts) * pitch + start for part in range(parts + 1)])
        ends = [some.int().to(device)[..., :, None] for some in (edges[:-1], edges[1:])]
        sides = [side.int().to(device)[..., None, :] for side in (left, right)]
        corners = torch.stack([(end + side).flatten() for end in ends for side in sides])
        return cls(corners, (corners.shape[1] // parts,), (parts,))

    @classmethod
    def joined(cls, boxes: "Sequence[BoxSums]") -> "BoxSums":
        """Many in one, in order."""
        lengths, parts = zip(*((length, part) for some in boxes for length, part in some.runs()), strict=True)
        return cls(torch.cat([some.corners for some in boxes], dim=1), lengths, parts)

    def runs(self) -> Iterator[tuple[int, int]]:
        """The length and the parts of each run."""
        return zip(self.lengths, self.parts, strict=True)

    def colours(self, tables: Int64[Tensor, " p"]) -> Iterator[Float[Tensor, " b"]]:
        """The sum of each box: first of red, then of green, then of blue."""
        above_left, above_right, below_left, below_right = self.corners
        packed = tables.index_select(0, below_right)
        packed -= tables.index_select(0, below_left)
        packed -= tables.index_select(0, above_right)
        packed += tables.index_select(0, above_left)
        for channel in range(3):
            colour = packed >> BITS * channel & 2**BITS - 1
            yield self._whole(colour.int().float())  # by way of 32 bits, which is the fast way

    def _whole(self, sums: Float[Tensor, " k"]) -> Float[Tensor, " b"]:
        if all(parts == 1 for parts in self.parts):
            return sums
        runs = sums.split([length * parts for length, parts in self.runs()])
        return torch.cat([run.view(parts, -1).sum(dim=0) for run, parts in zip(runs, self.parts, strict=True)])
