"""Read the real images that are distilled, with their labels, from mined shards or a labelled split of faces.

The folder's schema says which it is: `pseudo_label` is the auxiliary set (the VAS), `label` a split of aligned faces
(the paper's DAS-RAF distils the anchor). Only the chosen rows stay in memory, encoded; batches are decoded on demand.
A share of them is divided off, whole persons where they are known: it stops the distillation and judges what it made.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Int64, UInt8

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.faces import (
    decode_crop,
    encoded_images,
    iter_columns,
    open_shard,
    read_classes,
    read_table,
    shard_paths,
    stack_images,
)
from fer_pipeline.artifacts.split import HELDOUT
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.training.sets import partition


@dataclass(frozen=True)
class Source:
    kind: Literal["auxiliary", "faces"]
    classes: tuple[str, ...]
    encoded: list[bytes]
    labels: Int64[np.ndarray, " n"]
    subjects: np.ndarray  # "" where a person is not known
    left_out: dict[str, int]  # reason -> rows of the folder that are not distilled

    def images(self, rows: Int[np.ndarray, " k"]) -> UInt8[np.ndarray, "k h w 3"]:
        return stack_images([decode_crop(self.encoded[row], f"image {row} of the source") for row in rows])

    def take(self, rows: Int[np.ndarray, " k"]) -> "Source":
        """Some of the images as a source of their own."""
        return replace(
            self, encoded=[self.encoded[row] for row in rows], labels=self.labels[rows], subjects=self.subjects[rows]
        )

    def divide(self, heldout: float, seed: int) -> tuple["Source", "Source"]:
        """Returns what is distilled, and the share that is held out, of other persons where persons are known."""
        parts = partition(
            self.labels, self.subjects, shares={HELDOUT: heldout}, seed=seed, num_classes=len(self.classes)
        )
        return self.take(np.flatnonzero(parts != HELDOUT)), self.take(np.flatnonzero(parts == HELDOUT))

    def counts(self) -> Int64[np.ndarray, " c"]:
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def sha256(self) -> str:
        """Hashes images and labels, as the source's part of a fingerprint."""
        digest = hashlib.sha256(self.labels.tobytes())
        for item in self.encoded:
            digest.update(len(item).to_bytes(8, "little"))
            digest.update(item)
        return digest.hexdigest()


def read_source(
    folder: Path,
    *,
    classes: Sequence[str],
    seed: int,
    max_images: int | None = None,
    held_out: frozenset[str] = frozenset(),
) -> Source:
    """Reads the images of an auxiliary folder (any number of pools and classes) or of a faces split.

    `held_out` names the anchor's faces that nothing may be learned from; they are left out of a faces split. Other
    classes, another split than `train` and no labelled image at all are a DataError.
    """
    in_folder = read_classes(folder)
    if in_folder != tuple(classes):
        raise DataError(
            f"{folder} has the classes {list(in_folder)}, expected {list(classes)} in this order; rerun its stage"
        )
    names = open_shard(shard_paths(folder)[0]).names
    kind, column = ("auxiliary", "pseudo_label") if "pseudo_label" in names else ("faces", "label")
    table = read_table(folder, ["face_id", column, "split", "subject"])
    if splits := set(table.column("split").unique().to_pylist()) - {"train", None}:
        raise DataError(f"{folder} holds the split {sorted(splits)[0]!r}, but only train splits are distilled")
    labels = table.column(column).fill_null(-1).to_numpy().astype(np.int64)
    unlabelled, apart = labels < 0, np.zeros(len(labels), dtype=bool)
    if kind == "faces" and held_out:
        apart = is_among(table.column("face_id"), pa.array(sorted(held_out), pa.string())) & ~unlabelled
    usable = ~unlabelled & ~apart
    if not usable.any():
        raise DataError(
            f"{folder} has no labelled image to distil among {len(labels)}; mine more or choose another source"
        )
    chosen = usable if max_images is None else _subset(labels, usable, max_images, len(classes), seed)
    left_out = {
        "unlabelled": int(unlabelled.sum()),
        "held out": int(apart.sum()),
        "beyond max_images": int((usable & ~chosen).sum()),
    }
    images = (image for path in shard_paths(folder) for image in _encoded_images(path))
    encoded = [bytes(image) for image, is_chosen in zip(images, chosen.tolist(), strict=True) if is_chosen]
    subjects = np.array(table.column("subject").fill_null("").to_pylist(), dtype=object)
    return Source(kind, in_folder, encoded, labels[chosen], subjects[chosen], left_out)


def _encoded_images(path: Path) -> Iterator[memoryview]:
    for batch in iter_columns(path, ["image.bytes"]):
        yield from encoded_images(batch)


def _subset(
    labels: Int64[np.ndarray, " n"], usable: Bool[np.ndarray, " n"], most: int, classes: int, seed: int
) -> Bool[np.ndarray, " n"]:
    """Chooses at most `most` usable rows: rare classes whole, the others sharing evenly what is left, at random."""
    draw = np.random.default_rng(derive(seed, "distill", "subset"))
    rows = [np.flatnonzero(usable & (labels == index)) for index in range(classes)]
    chosen = np.zeros(len(labels), dtype=bool)
    for done, members in enumerate(sorted(rows, key=len)):
        take = min(len(members), most // (classes - done))
        chosen[draw.choice(members, size=take, replace=False)] = True
        most -= take
    return chosen
