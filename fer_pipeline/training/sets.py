"""Training sets: a folder of shards in; labels, names and subjects in memory, and images wherever they fit, out."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fer_pipeline.artifacts.faces import ROWS_PER_GROUP, open_shard, read_about, shard_paths
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.training.images import Held, Images, in_turn
from fer_pipeline.training.room import Room
from fer_pipeline.training.streamed import Groups, Streamed, read_groups

ROWS_PER_DECODE = 500


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: uint8 crops, or floats that are already in the network's input space."""

    images: Images
    labels: Int64[Tensor, " n"]  # -1 for none
    face_id: np.ndarray
    subjects: np.ndarray
    places: Int64[np.ndarray, " n"]  # of the rows among the images
    blocks: Int64[np.ndarray, " n"]  # the row group of every row, what an order by blocks goes by

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def prepared(self) -> bool:
        """Whether the images are network inputs already."""
        return self.images.prepared

    def pixels(
        self, rows: Int64[np.ndarray, " k"], *, pinned: bool = False
    ) -> UInt8[Tensor, "k h w 3"] | Float[Tensor, "k 3 s s"]:
        """The images of some rows."""
        return self.images.take(self.places[rows], pinned=pinned)

    def all_pixels(self) -> UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]:
        """The images of all rows, for small sets."""
        return self.pixels(np.arange(len(self)))

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Some rows as a set of their own; the images stay where they are."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return ImageSet(
            self.images,
            self.labels[index],
            self.face_id[rows],
            self.subjects[rows],
            self.places[rows],
            self.blocks[rows],
        )

    def holding(self, pixels: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]) -> "ImageSet":
        """The same rows with these images."""
        return replace(self, images=Held(pixels), places=np.arange(len(self)))

    def counts(self, num_classes: int) -> Int64[np.ndarray, " c"]:
        """Images per class."""
        labels = self.labels.numpy()
        return np.bincount(labels[labels >= 0], minlength=num_classes)


def held_set(
    pixels: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"],
    labels: Int64[Tensor, " n"],
    face_id: np.ndarray,
    subjects: np.ndarray,
) -> ImageSet:
    """A set of images that are in memory already, in blocks as shards have them."""
    rows = np.arange(len(labels))
    return ImageSet(Held(pixels), labels, face_id, subjects, rows, rows // ROWS_PER_GROUP)


def read_images(
    folder: Path, *, classes: Sequence[str], room: Room | None, label: Literal["label", "pseudo_label"] = "label"
) -> ImageSet:
    """All faces under `folder` that have a label; refuses other classes, another order, or a split other than train.

    Without a `room` no image is read before it is wanted.
    """
    found = tuple(read_about(folder)["classes"])
    if found != tuple(classes):
        raise DataError(
            f"{folder} has the classes {', '.join(found)}, expected {', '.join(classes)} in this order; "
            "run the stage that writes it again"
        )
    paths = shard_paths(folder)
    columns = _read_columns(paths, label)
    labels = columns.column(label).fill_null(-1).to_numpy().astype(np.int64)
    rows = np.flatnonzero(labels >= 0)
    groups = read_groups(paths)
    images, places = _lodge(groups, rows, room) if room else (Streamed(groups, keep=0, threads=1), rows)
    return ImageSet(
        images=images,
        labels=torch.from_numpy(labels[rows]),
        face_id=_names(columns.column("face_id"))[rows],
        subjects=_shared_strings(columns.column("subject"))[rows],
        places=places,
        blocks=groups.of(rows),
    )


def _read_columns(paths: Sequence[Path], label: str) -> pa.Table:
    tables = []
    for path in paths:
        table = open_shard(path).read(columns=["face_id", label, "subject", "split"])
        if splits := set(table.column("split").unique().to_pylist()) - {"train", None}:
            raise DataError(
                f"{path} holds the split {sorted(splits)[0]!r}, and training reads train splits only; name that folder"
            )
        tables.append(table.select(["face_id", label, "subject"]))
    return pa.concat_tables(tables)


def _names(column: pa.ChunkedArray) -> np.ndarray:
    """A column of strings that are all different, in a quarter of the memory of Python's."""
    chunks = [np.array(chunk.to_pylist(), dtype=np.dtypes.StringDType()) for chunk in column.chunks]
    return np.concatenate([np.array([], dtype=np.dtypes.StringDType()), *chunks])


def _shared_strings(column: pa.ChunkedArray) -> np.ndarray:
    """A column of strings as objects, one for equal ones, "" for none."""
    encoded = column.fill_null("").combine_chunks().dictionary_encode()
    names = np.array([*encoded.dictionary.to_pylist(), ""], dtype=object)[:-1]
    return names[encoded.indices.to_numpy()]


def _lodge(groups: Groups, rows: Int64[np.ndarray, " n"], room: Room) -> tuple[Images, Int64[np.ndarray, " n"]]:
    """The images where they fit, and the places of the rows there."""
    streamed = Streamed(groups, keep=0, threads=room.threads)
    if not len(rows):
        return streamed, rows
    shape = streamed.first_shape()
    place = room.take(len(rows) * int(np.prod(shape)))
    if place == "shards":
        return Streamed(groups, keep=room.take_some(groups.encoded_bytes), threads=room.threads), rows
    pixels = torch.empty((len(rows), *shape), dtype=torch.uint8, device=room.device if place == "device" else "cpu")
    with ThreadPoolExecutor(room.threads) as pool:
        list(pool.map(partial(_decode, streamed, rows, pixels), in_turn(len(rows), ROWS_PER_DECODE)))
    return Held(pixels), np.arange(len(rows))


def _decode(streamed: Streamed, rows: np.ndarray, pixels: Tensor, chosen: Int64[np.ndarray, " k"]) -> None:
    pixels[int(chosen[0]) : int(chosen[-1]) + 1] = streamed.take(rows[chosen])


def refuse_empty_classes(counts: Sequence[int] | np.ndarray, *, classes: Sequence[str], where: Path | str) -> None:
    """A class without a single face cannot be learned."""
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{where} has no face of the class {', '.join(empty)}; take it out of classes or map a label to it"
        )


def folder_sha256(folder: Path) -> str:
    """A hash of the names and bytes of all shards under a folder."""
    return fingerprint([[str(path.relative_to(folder)), file_sha256(path)] for path in shard_paths(folder)])
