"""Training images that stay in their Parquet shards: places in, decoded images out, with bounded memory.

Row groups are read when one of their images is first asked for and kept, encoded, as far as the memory given goes; the
one that was asked for longest ago is given up first. Several threads may ask.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fer_pipeline.artifacts.faces import decode_one, encoded_images, open_shard
from fer_pipeline.core.errors import DataError

FILES_OPEN = 128  # of a shard's footer about a megabyte stays in memory
JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Groups:
    """The row groups of some shards, in order: the shard and number of each, and its first row among all."""

    paths: tuple[Path, ...]
    shard: Int64[np.ndarray, " g"]
    number: Int64[np.ndarray, " g"]
    first: Int64[np.ndarray, " g"]
    rows: int
    encoded_bytes: int

    def of(self, rows: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """The groups that hold some rows."""
        return np.searchsorted(self.first, rows, side="right") - 1


def read_groups(paths: Sequence[Path]) -> Groups:
    """The row groups of shards, from their footers alone."""
    shard, number, counts, encoded = [], [], [], 0
    for index, path in enumerate(paths):
        footer = open_shard(path).metadata
        names = [footer.schema.column(column).path for column in range(len(footer.schema))]
        images = names.index("image.bytes")
        for group in range(footer.num_row_groups):
            about = footer.row_group(group)
            encoded += about.column(images).total_uncompressed_size
            shard.append(index)
            number.append(group)
            counts.append(about.num_rows)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Groups(
        tuple(paths), np.array(shard, np.int64), np.array(number, np.int64), first[:-1], int(first[-1]), encoded
    )


class Streamed:
    """The images of shards, read and decoded when they are wanted."""

    def __init__(self, groups: Groups, *, keep: int, threads: int) -> None:
        self.groups = groups
        self._keep, self._threads = keep, threads
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._read: OrderedDict[int, list[memoryview]] = OrderedDict()
        self._kept = 0
        self._lock = Lock()
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.groups.rows

    @property
    def prepared(self) -> bool:
        """Shards hold crops."""
        return False

    @property
    def streamed(self) -> bool:
        """Decoded for each batch."""
        return True

    @property
    def keeps_all(self) -> bool:
        """Whether every row group is read only once."""
        return self._keep >= self.groups.encoded_bytes

    def keep_at_least(self, rows: int) -> None:
        """Memory for so many rows, whatever was given: an order that goes by blocks comes back to them at once."""
        self._keep = max(self._keep, self.groups.encoded_bytes * rows // max(self.groups.rows, 1))

    def threads(self, device: torch.device) -> int:
        """Decoding is work on any device."""
        return self._threads

    def take(self, places: Int64[np.ndarray, " k"], *, pinned: bool = False) -> UInt8[Tensor, "k h w 3"]:
        """The decoded images of some rows; DataError for one that is broken or of another size."""
        encoded = self._encoded(places)
        shape = self.shape(encoded[0], int(places[0])) if encoded else (0, 0, 3)
        out = torch.empty((len(places), *shape), dtype=torch.uint8, pin_memory=pinned)
        for place, item, image in zip(places.tolist(), encoded, out.numpy(), strict=True):
            self._decode(item, image, place)
        return out

    def shape(self, encoded: memoryview, place: int) -> tuple[int, ...]:
        """Height, width and 3 of all images, by the first that was asked for."""
        if self._shape is None:
            try:
                self._shape = decode_one(encoded).shape
            except (ValueError, OSError) as error:
                raise self._broken(place, error) from None
        return self._shape

    def first_shape(self) -> tuple[int, ...]:
        """The same, of the first row."""
        place = np.zeros(1, np.int64)
        return self.shape(self._encoded(place)[0], 0)

    def _decode(self, encoded: memoryview, image: np.ndarray, place: int) -> None:
        try:
            if encoded[:2] == JPEG:
                size = simplejpeg.decode_jpeg_header(encoded)[:2]
                if size == image.shape[:2]:
                    simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=image)
                    return
                found = (*size, 3)
            else:
                picture = decode_one(encoded)
                found = picture.shape
                if found == image.shape:
                    image[...] = picture
                    return
        except (ValueError, OSError) as error:
            raise self._broken(place, error) from None
        raise DataError(
            f"crops of different sizes {sorted([found, image.shape])} in {self._where(place)}; "
            "rerun align with one crop size"
        )

    def _broken(self, place: int, error: Exception) -> DataError:
        first = " ".join(str(error).split())[:120]
        return DataError(
            f"{self._where(place)} holds no readable picture ({first}); remove the shard and rerun its stage"
        )

    def _where(self, place: int) -> str:
        group = int(self.groups.of(np.array([place]))[0])
        first = self.groups.first[np.searchsorted(self.groups.shard, self.groups.shard[group])]
        return f"{self.groups.paths[self.groups.shard[group]]}, row {place - int(first)}"

    def _encoded(self, places: Int64[np.ndarray, " k"]) -> list[memoryview]:
        groups = self.groups.of(places)
        within = places - self.groups.first[groups]
        with self._lock:
            held = {group: self._group(group) for group in np.unique(groups).tolist()}
        return [held[group][row] for group, row in zip(groups.tolist(), within.tolist(), strict=True)]

    def _group(self, group: int) -> list[memoryview]:
        if group in self._read:
            self._read.move_to_end(group)
            return self._read[group]
        shard = int(self.groups.shard[group])
        try:
            table = self._file(shard).read_row_group(
                int(self.groups.number[group]), columns=["image.bytes"], use_threads=False
            )
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"{self.groups.paths[shard]} is no readable Parquet shard ({error}); remove it and rerun its stage"
            ) from None
        images = encoded_images(table.combine_chunks().to_batches()[0])
        self._read[group] = images
        self._kept += _size(images)
        while self._kept > self._keep and len(self._read) > 1:
            self._kept -= _size(self._read.popitem(last=False)[1])
        return images

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            self._files[shard] = open_shard(self.groups.paths[shard])
            if len(self._files) > FILES_OPEN:
                self._files.popitem(last=False)
        return self._files[shard]


def _size(images: list[memoryview]) -> int:
    return sum(image.nbytes for image in images)
