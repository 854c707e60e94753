"""Hold training images: decoded in memory or on a GPU, or still encoded in their Parquet shards.

`DecodedImages` has them in one tensor; `ShardImages` reads row groups when one of their images is first wanted and
keeps them, encoded, as far as the memory given goes; the one wanted longest ago is given up first. Several threads may
ask. The values of an image are the same in both, so no result depends on which it was.

A `MemoryBudget` says what the settings allow of the memory that the machine has free. Images that fit are decoded once,
onto the GPU of the training or into memory; the rest stays in its shards.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import psutil
import torch
from jaxtyping import Int64

from fer_pipeline.artifacts.faces import decode_one, encoded_images, open_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Resources
from fer_pipeline.networks.preprocessing import Crops, Inputs

GIB = 1 << 30
Rows = Int64[np.ndarray, " k"]
FILES_OPEN = 128  # of a shard's footer about a megabyte stays in memory


class DecodedImages:
    """Decoded crops (bytes), or network inputs (floats: `prepared`), in one tensor."""

    def __init__(self, pixels: Crops | Inputs) -> None:
        self.pixels = pixels
        self.prepared = pixels.is_floating_point()

    def take(self, positions: Rows, *, pinned: bool = False) -> Crops | Inputs:
        """The images at some positions, where they lie; `pinned` in memory from which a GPU copies by itself."""
        if not pinned or self.pixels.device.type != "cpu":
            return self.pixels.index_select(0, torch.from_numpy(positions).to(self.pixels.device))
        out = torch.empty((len(positions), *self.pixels.shape[1:]), dtype=self.pixels.dtype, pin_memory=True)
        # torch would spread so small a copy over the threads of the step. The mode spares numpy a buffer.
        np.take(self.pixels.numpy(), positions, axis=0, out=out.numpy(), mode="clip")
        return out

    def threads(self, device: torch.device) -> int:
        """How many threads are worth making batches ahead: one, where images must be gathered for another device."""
        return int(self.pixels.device.type != device.type)


class ShardImages:
    """Crops that stay in their shards: read and decoded whenever they are wanted, by `threads` threads.

    `keep` bytes of encoded row groups stay in memory. Of each row group: its shard, its number there and its first row
    among all, from the shards' footers alone.
    """

    prepared = False

    def __init__(self, paths: Sequence[Path], *, keep: int, threads: int) -> None:
        self.paths, self.keep, self._threads = paths, keep, threads
        groups, self.encoded_bytes = [], 0
        for shard, path in enumerate(paths):
            shard_file = open_shard(path)
            shard_file.require(["image"])
            footer = shard_file.metadata
            column = [footer.schema.column(index).path for index in range(len(footer.schema))].index("image.bytes")
            for number in range(footer.num_row_groups):
                group = footer.row_group(number)
                self.encoded_bytes += group.column(column).total_uncompressed_size
                groups.append((shard, number, group.num_rows))
        self._shard, self._number, counts = np.array(groups, np.int64).reshape(-1, 3).T
        self._first = np.cumsum(counts) - counts
        self.rows = int(counts.sum())
        self._open = lru_cache(FILES_OPEN)(lambda shard: open_shard(paths[shard]))
        self._encoded_groups: OrderedDict[int, list[memoryview]] = OrderedDict()
        self._bytes_in_memory = 0
        self._lock = Lock()
        self._shape: tuple[int, ...] | None = None

    def containing(self, rows: Rows) -> Rows:
        return np.searchsorted(self._first, rows, side="right") - 1

    @property
    def keeps_all(self) -> bool:
        """Whether every row group is read only once."""
        return self.keep >= self.encoded_bytes

    def keep_at_least(self, rows: int) -> None:
        """Memory for so many rows, whatever was given: an order that goes by blocks comes back to them at once."""
        self.keep = max(self.keep, self.encoded_bytes * rows // max(self.rows, 1))

    def threads(self, device: torch.device) -> int:
        """How many threads are worth making batches ahead: decoding is work on any device."""
        return self._threads

    def take(self, positions: Rows, *, pinned: bool = False) -> Crops:
        """The decoded images of some rows; DataError for one that is broken or of another size."""
        groups = self.containing(positions)
        with self._lock:
            encoded_groups = {group: self._read_group(group) for group in np.unique(groups).tolist()}
        places = zip(groups.tolist(), (positions - self._first[groups]).tolist(), positions.tolist(), strict=True)
        pictures = [self._decode(encoded_groups[group][row], position) for group, row, position in places]
        out = torch.empty((len(positions), *(self._shape or (0, 0, 3))), dtype=torch.uint8, pin_memory=pinned)
        for image, picture in zip(out.numpy(), pictures, strict=True):
            image[...] = picture
        return out

    def _decode(self, encoded: memoryview, position: int) -> np.ndarray:
        try:
            picture = decode_one(encoded)
        except ValueError as error:
            raise DataError(
                f"{self._place(position)} holds no readable picture ({error}); remove the shard and rerun its stage"
            ) from None
        self._shape = self._shape or picture.shape
        if picture.shape != self._shape:
            raise DataError(
                f"crops of different sizes {sorted([picture.shape, self._shape])} in {self._place(position)}; "
                "rerun align with one crop size"
            )
        return picture

    def _place(self, position: int) -> str:
        shard = self._shard[self.containing(np.array([position]))[0]]
        return f"{self.paths[int(shard)]}, row {position - self._first[np.searchsorted(self._shard, shard)]}"

    def _read_group(self, group: int) -> list[memoryview]:
        if group in self._encoded_groups:
            self._encoded_groups.move_to_end(group)
            return self._encoded_groups[group]
        shard, number = int(self._shard[group]), int(self._number[group])
        table = self._open(shard).read_row_group(number, ["image.bytes"], use_threads=False)
        images = encoded_images(table.combine_chunks().to_batches()[0])
        self._encoded_groups[group] = images
        self._bytes_in_memory += sum(image.nbytes for image in images)
        while self._bytes_in_memory > self.keep and len(self._encoded_groups) > 1:
            self._bytes_in_memory -= sum(image.nbytes for image in self._encoded_groups.popitem(last=False)[1])
        return images


Images = DecodedImages | ShardImages


@dataclass
class MemoryBudget:
    """Bytes that one process may still take for images, and the threads that may decode them."""

    device: torch.device
    memory: int
    on_device: int = 0
    threads: int = 1

    def reserve(self, needed: int) -> Literal["device", "memory", "shards"]:
        """Reserves `needed` bytes of decoded images at the nearest place where they fit; in shards they need none."""
        if needed <= self.on_device:
            self.on_device -= needed
            return "device"
        if needed <= self.memory:
            self.memory -= needed
            return "memory"
        return "shards"

    def reserve_up_to(self, wanted: int) -> int:
        reserved = min(wanted, self.memory)
        self.memory -= reserved
        return reserved


def memory_budget(resources: Resources, device: torch.device, *, processes: int = 1) -> MemoryBudget:
    """The share of one of `processes` trainings at a time on this machine, each with a GPU of its own if with any."""
    memory = resources.memory_gb * GIB if resources.memory_gb is not None else free_memory() / 2
    on_device = torch.cuda.mem_get_info(device)[0] * resources.gpu_memory_share if device.type == "cuda" else 0
    threads = max(1, resources.workers // processes)
    return MemoryBudget(device, int(memory / processes), int(on_device), threads)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes to be had without pushing others out, of the machine and of the container where this is one."""
    free = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return free
