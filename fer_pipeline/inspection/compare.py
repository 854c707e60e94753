"""Compare two mined subsets face by face, and say what differs between the runs that made them.

A face is its pool and `face_id`. It is `added` or `removed`; or in both, and then `relabelled` where its class differs,
else `moved` where its rank in the class does, else unchanged. Class numbers do not matter, names do.
"""

from collections import defaultdict
from collections.abc import Iterator
from json import dumps
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from fer_pipeline.artifacts.arrow import positions_in
from fer_pipeline.core.documents import brief
from fer_pipeline.inspection.revisions import Revision, Stages
from fer_pipeline.inspection.tables import SUBSET, read_subset

CHANGES = ("added", "removed", "relabelled", "moved")
HASHES = ("md5", "etag", "checksum")
COMPARED = ("label", "rank", "margin")
COUNTED = ("before", "after", "added", "removed", "relabelled_to", "relabelled_from", "moved", "unchanged")
FACES = pa.schema(
    [
        *((name, pa.string()) for name in ("change", "pool", "face_id", "label_before", "label_after")),
        *((name, pa.int64()) for name in ("rank_before", "rank_after")),
        *((name, pa.float32()) for name in ("margin_before", "margin_after")),
    ]
)
CLASSES = pa.schema([("class", pa.string()), *((name, pa.int64()) for name in COUNTED)])
CAUSES = pa.schema([(name, pa.string()) for name in ("kind", "name", "stages", "before", "after")])


class Difference(NamedTuple):
    """What differs between two subsets.

    `faces` has a row for each face that changed (null on the side where it is not), in order of the change, its class
    and rank; `classes` one for each class of either; `causes` one for each setting, file of code, weights and data that
    `dvc.lock` records otherwise for `mine` or what comes before it.
    """

    faces: pa.Table
    classes: pa.Table
    causes: pa.Table


def diff(before: Revision, after: Revision) -> Difference:
    """Compares the subsets of two revisions."""
    (old, old_summary), (new, new_summary) = read_subset(before), read_subset(after)
    classes = list(dict.fromkeys([*old_summary["classes"], *new_summary["classes"]]))
    faces, classed = compare_subsets(old, new, classes)
    return Difference(faces, classed, compare_runs(before.stages, after.stages))


def compare_subsets(old: pa.Table, new: pa.Table, classes: list[str]) -> tuple[pa.Table, pa.Table]:
    """Compares two tables of mined faces; returns those that changed, and counts by class."""
    old_key, new_key = face_keys(old), face_keys(new)
    there = positions_in(new_key, old_key)  # of each new face among the old ones
    both = np.flatnonzero(there >= 0)
    gone = np.setdiff1d(np.arange(len(old)), there)
    label_old, label_new = (_numbers(table["label"], classes) for table in (old, new))
    rank_old, rank_new = (table["rank"].to_numpy() for table in (old, new))
    same = label_old[there[both]] == label_new[both]
    still = rank_old[there[both]] == rank_new[both]
    none = np.zeros(0, np.int64)
    groups = {
        "added": (none, np.flatnonzero(there < 0)),
        "removed": (gone, none),
        "relabelled": (there[both[~same]], both[~same]),
        "moved": (there[both[same & ~still]], both[same & ~still]),
    }
    faces = pa.concat_tables([FACES.empty_table(), *(_rows(change, old, new, *groups[change]) for change in CHANGES)])

    def count(labels: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " c"]:
        return np.bincount(labels, minlength=len(classes)).astype(np.int64)

    counts = {
        "before": count(label_old),
        "after": count(label_new),
        "added": count(label_new[groups["added"][1]]),
        "removed": count(label_old[gone]),
        "relabelled_to": count(label_new[groups["relabelled"][1]]),
        "relabelled_from": count(label_old[groups["relabelled"][0]]),
        "moved": count(label_new[groups["moved"][1]]),
        "unchanged": count(label_new[both[same & still]]),
    }
    return faces, pa.table({"class": classes, **{name: counts[name] for name in COUNTED}}, schema=CLASSES)


def face_keys(rows: pa.Table) -> pa.Array:
    """Returns one text a face; no name holds a NUL."""
    joined = pc.binary_join_element_wise(rows["pool"], rows["face_id"], "\0")  # pyright: ignore[reportAttributeAccessIssue]
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _numbers(labels: pa.ChunkedArray, classes: list[str]) -> Int64[np.ndarray, " n"]:
    return positions_in(labels, pa.array(classes, pa.string()))


def _rows(change: str, old: pa.Table, new: pa.Table, left: np.ndarray, right: np.ndarray) -> pa.Table:
    """The rows of one change; either side may be empty."""
    number = max(len(left), len(right))
    taken = {
        side: table.take(rows) if len(rows) == number else None
        for side, table, rows in (("before", old, left), ("after", new, right))
    }
    named = taken["after"] if taken["after"] is not None else taken["before"]
    assert named is not None
    columns: dict[str, Any] = {
        "change": pa.array([change] * number, pa.string()), "pool": named["pool"], "face_id": named["face_id"]
    }  # fmt: skip
    for name in COMPARED:
        for side, table in taken.items():
            kind = FACES.field(f"{name}_{side}").type
            columns[f"{name}_{side}"] = pa.nulls(number, kind) if table is None else table[name].cast(kind)
    return pa.table({name: columns[name] for name in FACES.names}, schema=FACES)


def compare_runs(before: Stages, after: Stages) -> pa.Table:
    """Lists what two locks record otherwise of `mine` and of the stages before it; null where one has nothing.

    `kind` is `parameter`, `code`, `weights`, `data` or `command`; `stages` are those that depend on it.
    """
    old, new = dict(_records(before)), dict(_records(after))
    rows: defaultdict[tuple[str, str, str | None, str | None], list[str]] = defaultdict(list)
    for kind, name, stage in {**old, **new}:
        values = old.get((kind, name, stage)), new.get((kind, name, stage))
        if values[0] != values[1]:
            # Values that differ beyond where they are cut are shown whole.
            cut = all(values) and len({value.short for value in values if value}) == 1
            texts = [value and (value.whole if cut else value.short) for value in values]
            rows[kind, name, texts[0], texts[1]].append(stage)
    order = ("parameter", "code", "weights", "data", "command")
    causes = [
        dict(zip(CAUSES.names, (kind, name, ", ".join(stages), *values), strict=True))
        for (kind, name, *values), stages in sorted(
            rows.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
    ]
    return pa.Table.from_pylist(causes, schema=CAUSES)


class _Value(NamedTuple):
    short: str
    whole: str


def _value(value: Any) -> _Value:
    return _Value(brief(value), dumps(value, default=str))


def _records(stages: Stages) -> Iterator[tuple[tuple[str, str, str], _Value]]:
    """Yields kind, name and stage of what a lock records, with its value."""
    for name in list_upstream(stages):
        stage = stages[name]
        if stage.get("cmd"):
            yield ("command", name, name), _value(stage["cmd"])
        for file, values in (stage.get("params") or {}).items():
            for key, value in _flatten(values, "" if file == "params.yaml" else f"{file}:"):
                yield ("parameter", key, name), value
        for one in [*(stage.get("deps") or ()), *(stage.get("outs") or ())]:
            path = one["path"]
            kind = {"fer_pipeline": "code", "models": "weights"}.get(path.partition("/")[0], "data")
            if path != SUBSET:
                yield (kind, path, name), _Value(*[next((str(one[key]) for key in HASHES if key in one), "")] * 2)


def _flatten(value: Any, place: str) -> Iterator[tuple[str, _Value]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flatten(part, f"{place}{'.' if place and not place.endswith(':') else ''}{key}")
    else:
        yield place, _value(value)


def list_upstream(stages: Stages, output: str = SUBSET) -> list[str]:
    """Lists the stages that an output is made by, and whatever they depend on, in the order of the lock."""
    makers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs") or ()}
    found, waiting = set[str](), [output]
    while waiting:
        path = waiting.pop()
        for made, name in makers.items():
            if name not in found and (f"{path}/".startswith(f"{made}/") or f"{made}/".startswith(f"{path}/")):
                found.add(name)
                waiting += [dep["path"] for dep in stages[name].get("deps") or ()]
    return [name for name in stages if name in found]
