"""Make, write and read `reports/labels/<recipe>.parquet`: what a final model calls some faces that it learned from.

A source may hold millions of faces: a number of them is drawn at even chance, and only the row groups that hold one are
read.

One row a face that was drawn, those of the pool before the labelled ones: `face_id`, `given` (the name of the label
that it was learned under, null in a pool), `given_probability` (f32, of that class, null in a pool), `predicted` (a
name), `probability` (f32, of that class), `label` (the class that the face's own table gives it, null where none) and
`image`, the crop as it lies in its shard, where the face is shown: of a pool the surest and the least sure of each
class, of the labelled set those of each class whose label is the least probable. The metadata has the `seed` of the
model and the numbers of all faces that were drawn from: `pool` and `labelled`, those that the model was fitted to.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8

from fer_pipeline.artifacts import arrow
from fer_pipeline.artifacts.faces import (
    decode_crop,
    encoded_images,
    open_shard,
    read_classes,
    read_table,
    shard_paths,
    stack_images,
)
from fer_pipeline.core.seeds import derive

RERUN = "run: dvc repro train_final"
KIND = "table of labels"
LABELS = arrow.required({"face_id": pa.string(), "predicted": pa.string(), "probability": pa.float32()}, remedy=RERUN)
LABELS = LABELS.append(pa.field("given", pa.string())).append(pa.field("given_probability", pa.float32()))
LABELS = LABELS.append(pa.field("label", pa.string())).append(pa.field("image", pa.binary()))
DRAWN = 2000  # faces of a source
SHOWN = 6  # of each class, from either end of a pool; of labelled faces as many in all
BATCH = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class Labels:
    """The rows, the seed of their model and the numbers of faces drawn from; `crop` decodes that of a row."""

    path: Path
    rows: list[Row]
    seed: int
    pool: int
    labelled: int

    def crop(self, row: Row) -> UInt8[np.ndarray, "h w 3"]:
        """Decode the crop of a row that has one; DataError where it is damaged."""
        return decode_crop(row["image"], f"{self.path}, {row['face_id']}")


def write_labels(path: Path, rows: Sequence[Mapping[str, Any]], *, seed: int, pool: int, labelled: int) -> None:
    """Write the rows; the same rows give the same bytes."""
    metadata = {**(LABELS.metadata or {}), **arrow.encode_metadata(seeds=[seed], pool=pool, labelled=labelled)}
    arrow.write_rows(path, pa.Table.from_pylist([*rows], schema=LABELS.with_metadata(metadata)))


def read_labels(path: Path) -> Labels | None:
    """Read the rows, None where none were written; a damaged file is a DataError."""
    if not path.exists():
        return None
    file = arrow.ParquetFile(path, LABELS, kind=KIND)
    about, rows = arrow.schema_metadata(file.schema, path), file.read(LABELS.names).to_pylist()
    with arrow.refuse_damage(path, LABELS, KIND):
        if not rows:
            return None
        [seed], pool, labelled = about["seeds"], about["pool"], about["labelled"]
        if not isinstance(pool, int) or not isinstance(labelled, int):
            raise ValueError("its sources have no size")
        if any((row["given"] is None) != (row["given_probability"] is None) for row in rows):
            raise ValueError("a label and its probability are not given together")
    return Labels(path, rows, seed, pool, labelled)


def label_faces(
    folder: Path,
    predict: Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n c"]],
    *,
    classes: Sequence[str],
    seed: int,
    given: Mapping[str, str] | None = None,
    drawn: int = DRAWN,
    shown: int = SHOWN,
) -> tuple[list[Row], int]:
    """Label at most `drawn` faces of a folder of shards, in their order; `predict` gives probabilities of `classes`.

    With `given`, the labels of faces that were learned from, by identifier, only those are drawn from.

    Returns:
        A row a face as `reports/labels` has it, with the crop of the `shown` surest and the `shown` least sure of each
        class or, with `given`, of twice `shown` of each class whose label is the least probable; the number of all
        faces that were drawn from.
    """
    if given is None:
        places = total = sum(sum(open_shard(path).row_counts()) for path in shard_paths(folder))
    else:
        places = np.flatnonzero([name in given for name in read_table(folder, ["face_id"])["face_id"].to_pylist()])
        total = len(places)
    chosen = np.random.default_rng(derive(seed, "labels")).choice(places, min(drawn, total), replace=False)
    own_classes, rows = read_classes(folder), list[Row]()
    faces = _read(folder, np.sort(chosen))
    while batch := [*islice(faces, BATCH)]:
        images = stack_images([decode_crop(image, f"{folder}, {name}") for name, _, image in batch])
        for (name, label, image), shares in zip(batch, predict(images), strict=True):
            known = None if label is None or label < 0 else own_classes[label]
            best = int(shares.argmax())
            own = given[name] if given is not None else None
            rows.append({"face_id": name, "given": own, "given_probability": None, "label": known, "image": image})
            rows[-1] |= {"predicted": classes[best], "probability": float(shares[best])}
            if own is not None:
                rows[-1]["given_probability"] = float(shares[classes.index(own)])
    kept = set[str]()
    called, surest = ("predicted", "probability") if given is None else ("given", "given_probability")
    for name in classes:
        members = [row for row in rows if row[called] == name]
        members.sort(key=lambda row: (-row[surest], row["face_id"]))
        first, last = (shown, shown) if given is None else (0, 2 * shown)
        kept |= {row["face_id"] for row in [*members[:first], *members[max(0, len(members) - last) :]]}
    return [row if row["face_id"] in kept else {**row, "image": None} for row in rows], total


def _read(folder: Path, chosen: np.ndarray) -> Iterator[tuple[str, int | None, bytes]]:
    """Yield identifier, label and encoded crop of the rows with these numbers, counted over all shards."""
    start = 0
    for path in shard_paths(folder):
        shard = open_shard(path)
        names = ["face_id", "image.bytes", *({"label"} & {*shard.names})]
        for group, number in enumerate(shard.row_counts()):
            places = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, start + number)] - start
            start += number
            if not len(places):
                continue
            rows = shard.read_row_group(group, names)
            images = encoded_images(rows.select(["image"]).combine_chunks().to_batches()[0])
            labels = rows["label"].to_pylist() if "label" in rows.column_names else [None] * number
            face_id = rows["face_id"].to_pylist()
            yield from ((face_id[place], labels[place], bytes(images[place])) for place in places.tolist())
