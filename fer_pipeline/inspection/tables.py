"""Read the tables of a revision: mined faces, scores, faces, rejected pictures, and what is known of each class.

Classes are names here, no numbers, so that SQL and JSON read well.

- `mined`: `face_id`, `pool`, `label`, `cosine`, `margin`, `rank`, as `artifacts.mined` describes them.
- `scores`: `face_id`, `pool`, `nearest` (a class), `margin`, `cosine` (a list in the order of the classes), and
  `logit` where it was stored.
- `faces`: `face_id`, `dataset`, `label`, `subject`, `split`, `landmarks`, `score`, `source` of the train splits,
  without pictures. `evaluate` alone opens test splits. It is read anew for every scan, and never held as a whole.
- `rejected`: `sample_id`, `dataset`, `source`, `split`, `reason`, of all splits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts import arrow, scores
from fer_pipeline.artifacts.census import RejectedSample
from fer_pipeline.artifacts.faces import FACE_FIELDS, open_shard
from fer_pipeline.artifacts.mined import ALL_CLASSES, MINED, SUMMARY, read_rows, read_summary
from fer_pipeline.artifacts.truth import Truth, read_truth
from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation.statistics import Interval, share_interval
from fer_pipeline.inspection.revisions import NotThereError, Revision

SUBSET = "data/mined"
REJECTED = arrow.required(
    dict.fromkeys(RejectedSample._fields, pa.string()), remedy="remove it and run: dvc repro align"
)
FACES = pa.schema([("face_id", pa.string()), ("dataset", pa.string()), ("label", pa.string()), *FACE_FIELDS[3:]])
Scannable = Any  # pa.Table, or what has `__arrow_c_stream__`


def read_subset(revision: Revision) -> tuple[pa.Table, dict[str, Any]]:
    """Reads the mined faces, in order of class and rank, and the summary of `mine`."""
    folder = revision.path(SUBSET, f"*{MINED}", f"*{SUMMARY}")
    summary = read_summary(folder)
    rows = read_rows(folder, MINED, classes=summary["classes"])
    named = rows.set_column(rows.column_names.index("label"), "label", name_classes(rows["label"], summary["classes"]))
    return named.replace_schema_metadata(None), summary


def name_classes(labels: pa.ChunkedArray | pa.Array, classes: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    """Returns the names of class numbers, null for null; a number of no class is a DataError."""
    try:
        return pa.array(list(classes), pa.string()).take(labels) if len(labels) else labels.cast(pa.string())
    except pa.ArrowIndexError:
        raise DataError(f"a label is none of the {len(classes)} classes; rerun the stage that made it") from None


def read_scores(revision: Revision) -> pa.Table:
    """Reads the scores of all pools; the lists stay on the disk until they are used."""
    parts = []
    for pool in revision.names("data/scores"):
        folder = revision.path(f"data/scores/{pool}", "*part-*.arrow")
        for path in arrow.list_shards(folder, "part-*.arrow"):
            rows = arrow.read_ipc(path, scores.COLUMNS)
            classes = arrow.schema_metadata(rows.schema, path).get("classes", [])
            _check_classes(path, rows["nearest"], classes)
            nearest = name_classes(rows["nearest"], classes)
            rows = rows.set_column(rows.column_names.index("nearest"), "nearest", nearest)
            parts.append(rows.add_column(1, "pool", _repeat(pool, len(rows))).replace_schema_metadata(None))
    if not parts:
        raise NotThereError(f"{revision.title} has no data/scores; run: dvc repro score")
    return pa.concat_tables(parts, promote_options="default")


def _check_classes(path: Path, numbers: pa.ChunkedArray, classes: Sequence[str]) -> None:
    values = numbers.to_numpy()
    if len(values) and not (0 <= values.min() and values.max() < len(classes)):
        raise DataError(f"{path} has classes that are none of its {len(classes)}; {scores.RESCORE}")


def _repeat(text: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [text])


@dataclass
class FaceScan:
    """Faces of several shards as an Arrow stream, which begins anew each time that it is asked for.

    What is wrong with a shard shows while somebody reads; `fault` keeps it, since readers have errors of their own.
    """

    shards: Sequence[tuple[str, Path]]  # data set and path
    fault: list[DataError] = field(default_factory=list)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_batches(FACES, self._batches())
        return reader.__arrow_c_stream__(requested_schema)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for dataset, path in self.shards:
                shard = open_shard(path)
                classes = shard.about.get("classes", [])
                columns = [name for name in FACES.names if name != "dataset"]
                for rows in shard.iter_batches(10_000, columns):
                    arrays = {name: rows.column(name) for name in columns}
                    arrays["label"] = name_classes(arrays["label"], classes)
                    arrays["dataset"] = pa.array([dataset] * len(rows), pa.string())
                    yield pa.RecordBatch.from_arrays([arrays[name] for name in FACES.names], schema=FACES)
        except DataError as error:
            self.fault.append(error)
            raise


def read_faces(revision: Revision) -> FaceScan:
    """Finds the faces of every train split."""
    shards = []
    for dataset in revision.names("data/faces"):
        folder = revision.path(f"data/faces/{dataset}", "train/part-*.parquet") / "train"
        if folder.is_dir():  # a set may have a test split alone
            shards += [(dataset, path) for path in arrow.list_shards(folder, "part-*.parquet")]
    if not shards:
        raise NotThereError(f"{revision.title} has no data/faces; run: dvc repro align")
    return FaceScan(shards)


def read_rejected(revision: Revision) -> pa.Table:
    """Reads what `align` left out of every set."""
    parts = []
    for dataset in revision.names("data/faces"):
        path = revision.path(f"data/faces/{dataset}", "rejected.parquet") / "rejected.parquet"
        rows = arrow.ParquetFile(path, REJECTED).read(REJECTED.names)
        parts.append(rows.add_column(1, "dataset", _repeat(dataset, len(rows))).replace_schema_metadata(None))
    if not parts:
        raise NotThereError(f"{revision.title} has no data/faces; run: dvc repro align")
    return pa.concat_tables(parts)


TABLES: Mapping[str, Callable[[Revision], Scannable]] = {
    "mined": lambda revision: read_subset(revision)[0],
    "scores": read_scores,
    "faces": read_faces,
    "rejected": read_rejected,
}


SHOWN = pa.schema(
    [
        ("class", pa.string()),
        ("margin", pa.float64()),
        *((name, pa.int64()) for name in ("kept", "passed", "heldout")),
        *((name, pa.float64()) for name in ("precision", "low", "high")),
        ("reason", pa.string()),
        *((name, pa.int64()) for name in ("drawn", "judged")),
        *((name, pa.float64()) for name in ("measured_precision", "measured_low", "measured_high")),
        ("known", pa.int64()),
        *((name, pa.float64()) for name in ("true_precision", "true_low", "true_high")),
    ]
)


def show(revision: Revision) -> tuple[pa.Table, dict[str, Any]]:
    """Says of each class, and of all ("*"), what was mined, by which threshold, and how right it is.

    `precision` is the estimate of `mine` with its interval (null and a `reason` where it is not known);
    `measured_precision` is the share that is right of the faces that the rule chose, by those `judged` of `drawn` ones,
    null where none was (see `mining.review`); `true_precision` is the share that is right of the `known` faces, those
    whose truth lies in `data/truth`, with Wilson's interval; null where nothing is known.

    Returns:
        The table, and the summary of `mine` for what concerns no class.
    """
    rows, summary = read_subset(revision)
    known, right = count_right(revision, rows)
    shown = []
    for name, counts in [*summary["by_class"].items(), (ALL_CLASSES, _whole(summary))]:
        true = share_interval(right[name], known[name]) if known[name] else Interval(0.0, None, None, 0)
        measured = counts.get("measured") or {}
        shown.append(
            {"class": name, "margin": summary["margins"].get(name), "known": known[name]}
            | {key: counts.get(key) for key in ("kept", "passed", "heldout", "precision", "low", "high", "reason")}
            | {key: measured.get(key) for key in ("drawn", "judged")}
            | {f"measured_{key}": measured.get(key) for key in ("precision", "low", "high")}
            | {"true_precision": true.mean if known[name] else None, "true_low": true.low, "true_high": true.high}
        )
    return pa.Table.from_pylist(shown, schema=SHOWN), summary


def _whole(summary: Mapping[str, Any]) -> dict[str, Any]:
    expected = summary["precision"]
    ends = {"precision": expected["estimate"], "low": expected["low"], "high": expected["high"]}
    return {"kept": summary["kept"], "passed": summary.get("passed"), **ends, "measured": expected.get("measured")}


def read_truth_of(revision: Revision, rows: pa.Table) -> Truth:
    """Reads the truth of the pools of some faces, where there is one; not all need lie in one folder."""
    names = {pool: f"data/truth/{pool}.parquet" for pool in rows["pool"].unique().to_pylist()}
    files = {pool: revision.path(name) for pool, name in names.items() if revision.has(name)}
    return Truth({pool: read_truth(file.parent, [pool]).pools[pool] for pool, file in files.items()})


def count_right(revision: Revision, rows: pa.Table) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Counts by class, and for all, the mined faces whose truth is known, and those of them that are right."""
    known, right = defaultdict[str, int](int), defaultdict[str, int](int)
    truth = read_truth_of(revision, rows)
    if not truth.pools:
        return known, right
    for pool, face_id, label in zip(*(rows[name].to_pylist() for name in ("pool", "face_id", "label")), strict=True):
        answer = truth.right(pool, face_id, label)
        if answer is not None:
            for name in (label, ALL_CLASSES):
                known[name] += 1
                right[name] += answer
    return known, right
