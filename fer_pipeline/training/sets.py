"""Read training sets from shards, labels and subjects into memory and images wherever they fit, and divide them."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from fer_pipeline.artifacts.faces import ROWS_PER_GROUP, open_shard, read_metadata, read_table, shard_paths
from fer_pipeline.artifacts.seed_folders import name_in
from fer_pipeline.artifacts.split import FIT
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.preprocessing import Crops, Inputs, Preprocessing
from fer_pipeline.training.images import DecodedImages, Images, MemoryBudget, Rows, ShardImages

ROWS_PER_DECODE = 500
PER_ROW = ("labels", "face_id", "subjects", "positions", "blocks", "landmarks", "truth")
Label = Literal["label", "pseudo_label"]


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels, names and persons: uint8 crops, or inputs of a network (then `space` says which).

    `positions` are the rows' places among the images, `blocks` the row group of every row (an order by blocks goes by
    it). `landmarks` are five points x1, y1 … x5, y5 in crop pixels (eyes, nose, corners of the mouth; the first pixel's
    centre is 0) where they were asked for. `truth` are labels that nothing may learn from, for the history alone, where
    `labels` may be others: those that faces of a pool have, or those from before labels were changed; -1 for none.
    """

    images: Images
    labels: Int64[Tensor, " n"]  # -1 for none
    face_id: np.ndarray
    subjects: np.ndarray
    positions: Int64[np.ndarray, " n"]
    blocks: Int64[np.ndarray, " n"]
    landmarks: Float32[Tensor, "n 10"] | None = None
    truth: Int64[Tensor, " n"] | None = None  # None where no face has one, or labels are the truth
    space: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, rows: Rows, *, pinned: bool = False) -> Crops | Inputs:
        return self.images.take(self.positions[rows], pinned=pinned)

    def all_pixels(self) -> Crops | Inputs:
        return self.pixels(np.arange(len(self)))

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Some rows as a set of their own; the images stay where they are."""
        columns = {name: getattr(self, name) for name in PER_ROW}
        return replace(self, **{name: column if column is None else column[rows] for name, column in columns.items()})

    def with_pixels(self, pixels: Crops | Inputs) -> "ImageSet":
        return replace(self, images=DecodedImages(pixels), positions=np.arange(len(self)))

    def as_inputs_of(self, preprocessing: Preprocessing) -> "ImageSet":
        """Inputs of another network as inputs of one with `preprocessing`; crops stay as they are."""
        if self.space is None:
            return self
        converted = self.with_pixels(preprocessing.convert(self.all_pixels(), self.space))
        return replace(converted, space=preprocessing)

    def counts(self, num_classes: int) -> Int64[np.ndarray, " c"]:
        labels = self.labels.numpy()
        return np.bincount(labels[labels >= 0], minlength=num_classes)


def image_set(
    pixels: Crops | Inputs,
    labels: Int64[Tensor, " n"],
    face_id: np.ndarray,
    subjects: np.ndarray,
    *,
    space: Preprocessing | None = None,
) -> ImageSet:
    """A set of images that are in memory already, in blocks as shards have them."""
    rows = np.arange(len(labels))
    return ImageSet(DecodedImages(pixels), labels, face_id, subjects, rows, rows // ROWS_PER_GROUP, space=space)


def read_images(
    folder: Path,
    *,
    classes: Sequence[str],
    budget: MemoryBudget | None,
    label: Label | None = "label",
    landmarks: bool = False,
    also: Path | None = None,
) -> ImageSet:
    """All faces under `folder` that have a label, or all faces where no `label` is asked for (their labels are -1).

    Those under `also` follow. Without a `budget` no image is read before it is wanted. DataError for other classes,
    another order of classes, or a split other than train.
    """
    folders = [folder, *([also] if also else [])]
    for one in folders:
        check_classes(one, classes)
    paths = [path for one in folders for path in shard_paths(one)]
    wanted = ["face_id", *([label] if label else []), *(["landmarks"] if landmarks else []), "subject"]
    wanted += ["label"] if label != "label" else []
    tables = []
    for path in paths:
        table = open_shard(path).read(columns=[*wanted, "split"])
        if splits := set(table.column("split").unique().to_pylist()) - {"train", None}:
            raise DataError(
                f"{path} holds the split {sorted(splits)[0]!r}, and training reads train splits only; name that folder"
            )
        tables.append(table.select(wanted))
    columns = pa.concat_tables(tables)
    known = columns.column("label").fill_null(-1).to_numpy().astype(np.int64)
    if label is None:
        labels, rows = np.full(len(columns), -1, np.int64), np.arange(len(columns))
    else:
        labels = columns.column(label).fill_null(-1).to_numpy().astype(np.int64)
        rows = np.flatnonzero(labels >= 0)
    truth = None if label == "label" or (known[rows] < 0).all() else torch.from_numpy(known[rows])
    in_shards = ShardImages(paths, keep=0, threads=budget.threads if budget else 1)
    images, positions = _place_images(in_shards, rows, budget) if budget else (in_shards, rows)
    text = np.dtypes.StringDType()  # a quarter of the memory of Python's strings where all are different
    names = [np.array(chunk.to_pylist(), dtype=text) for chunk in columns.column("face_id").chunks]
    subjects = columns.column("subject").fill_null("").combine_chunks().dictionary_encode()  # an object for equal ones
    points = None
    if landmarks:
        column = columns.column("landmarks").combine_chunks()
        if missing := column.null_count or column.values.null_count:
            raise DataError(
                f"{folder} has {missing:,} faces without landmarks, which the strategy's cover wants; set its option "
                "cover: forehead or none, or leave them out: align.sets.<set>.no_face: reject"
            )
        points = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 10)
    return ImageSet(
        images=images,
        labels=torch.from_numpy(labels[rows]),
        face_id=np.concatenate([np.array([], dtype=text), *names])[rows],
        subjects=np.array(subjects.dictionary.to_pylist(), dtype=object)[subjects.indices.to_numpy()[rows]],
        positions=positions,
        blocks=in_shards.containing(rows),
        landmarks=None if points is None else torch.from_numpy(points[rows]),
        truth=truth,
    )


def count_labelled(folder: Path) -> int:
    """Returns how many faces under `folder` have a label."""
    labels = read_table(folder, ["label"]).column("label")
    return int((labels.fill_null(-1).to_numpy() >= 0).sum())


def balanced_rows(
    labels: Int64[np.ndarray, " n"], *, per_class: int | None, seed: int, where: str
) -> Int64[np.ndarray, " k"]:
    """Rows of a set with equally many images of every class that it has, drawn at random, in the set's order.

    `per_class` of each, or as many as the rarest class has; ConfigError where a class has fewer.
    """
    members = {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}
    fewest = min(len(rows) for rows in members.values())
    if per_class is not None and per_class > fewest:
        raise ConfigError(
            f"training.balance_per_class: {per_class} images of each class were asked for, and {where} has {fewest:,} "
            "of its rarest; set at most that, or null for as many"
        )
    size = per_class or fewest
    chosen = [
        np.random.default_rng(derive(seed, "class", label)).permutation(rows)[:size] for label, rows in members.items()
    ]
    return np.sort(np.concatenate(chosen))


def balance_sets(
    sets: Mapping[str, ImageSet], names: Collection[str], *, per_class: int | None, seed: int
) -> tuple[dict[str, ImageSet], list[str]]:
    """Draws `balanced_rows` of the named sets, others for each seed; with a note where that leaves faces out."""
    found, kept = dict(sets), []
    for name, images in sets.items():
        if name not in names:
            continue
        own = derive(seed, "balance", name)
        rows = balanced_rows(images.labels.numpy(), per_class=per_class, seed=own, where=name)
        if len(rows) < len(images):
            found[name] = images.take(rows)
            kept.append(f"{len(rows):,} of {len(images):,} {name} faces")
    note = f"training.balance: dataset trains on {' and '.join(kept)}, equally many of each class"
    return found, [note] if kept else []


def check_classes(folder: Path, classes: Sequence[str]) -> None:
    stored = tuple(read_metadata(folder)["classes"])
    if stored != tuple(classes):
        raise DataError(
            f"{folder} has the classes {', '.join(stored)}, expected {', '.join(classes)} in this order; "
            "run the stage that writes it again"
        )


def _place_images(in_shards: ShardImages, rows: Rows, budget: MemoryBudget) -> tuple[Images, Rows]:
    if not len(rows):
        return in_shards, rows
    shape = in_shards.take(np.zeros(1, np.int64)).shape[1:]
    place = budget.reserve(len(rows) * int(np.prod(shape)))
    if place == "shards":
        in_shards.keep = budget.reserve_up_to(in_shards.encoded_bytes)
        return in_shards, rows
    pixels = torch.empty((len(rows), *shape), dtype=torch.uint8, device=budget.device if place == "device" else "cpu")

    def decode(start: int) -> None:
        pixels[start : start + ROWS_PER_DECODE] = in_shards.take(rows[start : start + ROWS_PER_DECODE])

    with ThreadPoolExecutor(budget.threads) as pool:
        list(pool.map(decode, range(0, len(rows), ROWS_PER_DECODE)))
    return DecodedImages(pixels), np.arange(len(rows))


def folder_sha256(folder: Path) -> str:
    return fingerprint([[name_in(path, folder), file_sha256(path)] for path in shard_paths(folder)])


def partition(
    labels: Int64[np.ndarray, " n"], subjects: np.ndarray, *, shares: Mapping[str, float], seed: int, num_classes: int
) -> np.ndarray:
    """Divides a labelled set: `fit` or one of the names in `shares` for every face.

    Nobody's faces are in two parts: subjects move as a whole (faces without a subject are each their own). The parts
    are taken one after the other, each from what those before it have left, so that a part does not depend on those
    that come after it: with equal seeds and shares two stages have the same first part, whatever else they set aside.
    """
    assert sum(shares.values()) < 1, "the shares leave nothing to train on"
    keys = pa.array([subject or f"\x00{index}" for index, subject in enumerate(subjects)], pa.string())
    group = keys.dictionary_encode().indices.to_numpy()  # in the order of their first faces
    counts = np.zeros((int(group.max(initial=-1)) + 1, num_classes))
    np.add.at(counts, (group, labels), 1)
    part_of_group, left = np.full(len(counts), FIT, dtype=object), 1.0
    for name, share in shares.items():
        free = np.flatnonzero(part_of_group == FIT)
        taken = _take_share(counts[free], share / left, np.random.default_rng(derive(seed, "partition", name)))
        part_of_group[free[taken]] = name
        left -= share
    return part_of_group[group]


def _take_share(
    counts: Float64[np.ndarray, "g c"], share: float, random: np.random.Generator
) -> Bool[np.ndarray, " g"]:
    """Says of each group whether it is among those that make up a share of every class.

    Every class is divided as well as whole groups allow. Source: the greedy rule of scikit-learn's
    StratifiedGroupKFold, here for two parts of any size: groups in random order, large first, each to the part where it
    lessens the squared shortfall of the class counts the most; what is left wins ties and keeps at least one face of
    every class that has one.
    """
    totals = counts.sum(0)
    desired = np.array([1 - share, share])[:, None] * totals[None, :]
    # Per class, not per face: a class with few faces must be divided as well as a class with many.
    importance = 1 / np.maximum(totals, 1)
    order = random.permutation(len(counts))
    order = order[np.argsort(-counts[order].max(1, initial=0), kind="stable")]
    assigned, taken = np.zeros((2, counts.shape[1])), np.zeros(len(counts), bool)
    for index in order:
        change = ((2 * (assigned - desired) + counts[index]) * counts[index] * importance).sum(1)
        part = int(np.argmin(change))
        taken[index] = part == 1
        assigned[part] += counts[index]
    for index in np.flatnonzero((totals > 0) & (counts[~taken].sum(0) == 0)):
        smallest = min(np.flatnonzero(counts[:, index] > 0), key=lambda group: counts[group].sum())
        taken[smallest] = False
    return taken
