"""Where training images lie: places of images in, one tensor out, whatever lies between.

`Held` has them decoded, in memory or on a GPU; `Streamed` (streamed.py) has them in their shards. The values of an
image are the same in both, so no result depends on which it was.
"""

from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@runtime_checkable
class Images(Protocol):
    """Images that can be had by their places."""

    @property
    def prepared(self) -> bool:
        """Whether they are network inputs already."""
        ...

    @property
    def streamed(self) -> bool:
        """Whether every image is decoded again whenever it is wanted."""
        ...

    def __len__(self) -> int: ...

    def take(
        self, places: Int64[np.ndarray, " k"], *, pinned: bool = False
    ) -> UInt8[Tensor, "k h w 3"] | Float[Tensor, "k 3 s s"]:
        """The images at some places, where they lie; `pinned` in memory from which a GPU copies by itself."""
        ...

    def threads(self, device: torch.device) -> int:
        """How many threads are worth making batches for `device` ahead of the step; 0 where it costs nothing."""
        ...


class Held:
    """Decoded images, or network inputs, in one tensor."""

    def __init__(self, pixels: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def prepared(self) -> bool:
        """Crops are bytes, network inputs are floats."""
        return self.pixels.is_floating_point()

    @property
    def streamed(self) -> bool:
        """Decoded once."""
        return False

    def take(
        self, places: Int64[np.ndarray, " k"], *, pinned: bool = False
    ) -> UInt8[Tensor, "k h w 3"] | Float[Tensor, "k 3 s s"]:
        """See `Images`."""
        if not pinned or self.pixels.device.type != "cpu":
            return self.pixels.index_select(0, torch.from_numpy(places).to(self.pixels.device))
        out = torch.empty((len(places), *self.pixels.shape[1:]), dtype=self.pixels.dtype, pin_memory=True)
        # torch would spread so small a copy over the threads of the step. The mode spares numpy a buffer.
        np.take(self._array, places, axis=0, out=out.numpy(), mode="clip")
        return out

    @cached_property
    def _array(self) -> np.ndarray:
        return self.pixels.numpy()

    def threads(self, device: torch.device) -> int:
        """One, where images must be gathered for another device."""
        return int(self.pixels.device.type != device.type)

    def on(self, device: torch.device) -> "Held":
        """The same images on a device."""
        return Held(self.pixels.to(device))


def in_turn(count: int, size: int) -> list[np.ndarray]:
    """The numbers below `count` in order, `size` at a time."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
