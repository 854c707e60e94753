"""Hold training images: decoded in memory or on a GPU, or still encoded in their Parquet shards.

`DecodedImages` has them in one tensor; `ShardImages` reads row groups when one of their images is first wanted and
keeps them, encoded, as far as the memory given goes; the one wanted longest ago is given up first. Several threads may
ask. The values of an image are the same in both, so no result depends on which it was.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fer_pipeline.artifacts.faces import decode_one, encoded_images, open_shard
from fer_pipeline.core.errors import DataError

FILES_OPEN = 128  # of a shard's footer about a megabyte stays in memory
JPEG = b"\xff\xd8"


class DecodedImages:
    """Decoded crops (bytes), or network inputs (floats: `prepared`), in one tensor."""

    streamed = False

    def __init__(self, pixels: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]) -> None:
        self.pixels = pixels
        self.prepared = pixels.is_floating_point()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(
        self, positions: Int64[np.ndarray, " k"], *, pinned: bool = False
    ) -> UInt8[Tensor, "k h w 3"] | Float[Tensor, "k 3 s s"]:
        """The images at some positions, where they lie; `pinned` in memory from which a GPU copies by itself."""
        if not pinned or self.pixels.device.type != "cpu":
            return self.pixels.index_select(0, torch.from_numpy(positions).to(self.pixels.device))
        out = torch.empty((len(positions), *self.pixels.shape[1:]), dtype=self.pixels.dtype, pin_memory=True)
        # torch would spread so small a copy over the threads of the step. The mode spares numpy a buffer.
        np.take(self._array, positions, axis=0, out=out.numpy(), mode="clip")
        return out

    @cached_property
    def _array(self) -> np.ndarray:
        return self.pixels.numpy()

    def threads(self, device: torch.device) -> int:
        """How many threads are worth making batches ahead: one, where images must be gathered for another device."""
        return int(self.pixels.device.type != device.type)


@dataclass(frozen=True)
class RowGroups:
    """The row groups of some shards, in order: the shard and number of each, and its first row among all."""

    paths: tuple[Path, ...]
    shard: Int64[np.ndarray, " g"]
    number: Int64[np.ndarray, " g"]
    first: Int64[np.ndarray, " g"]
    rows: int
    encoded_bytes: int

    def containing(self, rows: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """The groups that hold some rows."""
        return np.searchsorted(self.first, rows, side="right") - 1


def read_row_groups(paths: Sequence[Path]) -> RowGroups:
    """The row groups of shards, from their footers alone."""
    shard, number, counts, encoded = [], [], [], 0
    for index, path in enumerate(paths):
        footer = open_shard(path).metadata
        names = [footer.schema.column(column).path for column in range(len(footer.schema))]
        image_bytes = names.index("image.bytes")
        for group in range(footer.num_row_groups):
            row_group = footer.row_group(group)
            encoded += row_group.column(image_bytes).total_uncompressed_size
            shard.append(index)
            number.append(group)
            counts.append(row_group.num_rows)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return RowGroups(
        tuple(paths), np.array(shard, np.int64), np.array(number, np.int64), first[:-1], int(first[-1]), encoded
    )


class ShardImages:
    """Crops that stay in their shards: read and decoded whenever they are wanted, by `threads` threads.

    `keep` bytes of encoded row groups stay in memory.
    """

    prepared = False
    streamed = True

    def __init__(self, groups: RowGroups, *, keep: int, threads: int) -> None:
        self.groups = groups
        self._keep, self._threads = keep, threads
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._encoded_groups: OrderedDict[int, list[memoryview]] = OrderedDict()
        self._bytes_in_memory = 0
        self._lock = Lock()
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.groups.rows

    @property
    def keeps_all(self) -> bool:
        """Whether every row group is read only once."""
        return self._keep >= self.groups.encoded_bytes

    def keep_at_least(self, rows: int) -> None:
        """Memory for so many rows, whatever was given: an order that goes by blocks comes back to them at once."""
        self._keep = max(self._keep, self.groups.encoded_bytes * rows // max(self.groups.rows, 1))

    def threads(self, device: torch.device) -> int:
        """How many threads are worth making batches ahead: decoding is work on any device."""
        return self._threads

    def take(self, positions: Int64[np.ndarray, " k"], *, pinned: bool = False) -> UInt8[Tensor, "k h w 3"]:
        """The decoded images of some rows; DataError for one that is broken or of another size."""
        encoded = self._read_encoded(positions)
        shape = self._shape_of(encoded[0], int(positions[0])) if encoded else (0, 0, 3)
        out = torch.empty((len(positions), *shape), dtype=torch.uint8, pin_memory=pinned)
        for position, item, image in zip(positions.tolist(), encoded, out.numpy(), strict=True):
            self._decode(item, image, position)
        return out

    def first_shape(self) -> tuple[int, ...]:
        """Height, width and 3 of all images, by the first row."""
        return self._shape_of(self._read_encoded(np.zeros(1, np.int64))[0], 0)

    def _shape_of(self, encoded: memoryview, position: int) -> tuple[int, ...]:
        if self._shape is None:
            try:
                self._shape = decode_one(encoded).shape
            except (ValueError, OSError) as error:
                raise self._broken(position, error) from None
        return self._shape

    def _decode(self, encoded: memoryview, image: np.ndarray, position: int) -> None:
        try:
            if encoded[:2] == JPEG:
                size = simplejpeg.decode_jpeg_header(encoded)[:2]
                if size == image.shape[:2]:
                    simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=image)
                    return
                shape = (*size, 3)
            else:
                picture = decode_one(encoded)
                shape = picture.shape
                if shape == image.shape:
                    image[...] = picture
                    return
        except (ValueError, OSError) as error:
            raise self._broken(position, error) from None
        raise DataError(
            f"crops of different sizes {sorted([shape, image.shape])} in {self._place(position)}; "
            "rerun align with one crop size"
        )

    def _broken(self, position: int, error: Exception) -> DataError:
        first = " ".join(str(error).split())[:120]
        return DataError(
            f"{self._place(position)} holds no readable picture ({first}); remove the shard and rerun its stage"
        )

    def _place(self, position: int) -> str:
        group = int(self.groups.containing(np.array([position]))[0])
        first = self.groups.first[np.searchsorted(self.groups.shard, self.groups.shard[group])]
        return f"{self.groups.paths[self.groups.shard[group]]}, row {position - int(first)}"

    def _read_encoded(self, positions: Int64[np.ndarray, " k"]) -> list[memoryview]:
        groups = self.groups.containing(positions)
        within = positions - self.groups.first[groups]
        with self._lock:
            images = {group: self._read_group(group) for group in np.unique(groups).tolist()}
        return [images[group][row] for group, row in zip(groups.tolist(), within.tolist(), strict=True)]

    def _read_group(self, group: int) -> list[memoryview]:
        if group in self._encoded_groups:
            self._encoded_groups.move_to_end(group)
            return self._encoded_groups[group]
        shard = int(self.groups.shard[group])
        try:
            table = self._open(shard).read_row_group(
                int(self.groups.number[group]), columns=["image.bytes"], use_threads=False
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{self.groups.paths[shard]} is no readable Parquet shard ({error}); remove it and rerun its stage"
            ) from None
        images = encoded_images(table.combine_chunks().to_batches()[0])
        self._encoded_groups[group] = images
        self._bytes_in_memory += _size(images)
        while self._bytes_in_memory > self._keep and len(self._encoded_groups) > 1:
            self._bytes_in_memory -= _size(self._encoded_groups.popitem(last=False)[1])
        return images

    def _open(self, shard: int) -> pq.ParquetFile:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = open_shard(self.groups.paths[shard])
            if len(self._files) > FILES_OPEN:
                self._files.popitem(last=False)
        return self._files[shard]


Images = DecodedImages | ShardImages


def slices_in_order(count: int, size: int) -> list[np.ndarray]:
    """The numbers below `count` in order, `size` at a time."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def _size(images: list[memoryview]) -> int:
    return sum(image.nbytes for image in images)
