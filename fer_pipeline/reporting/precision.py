"""How right the pseudo-labels are: estimated on held-out anchor faces, and true where a pool's truth is known.

The estimate of a pool is the mean of the classes' estimates weighted by what that pool gave to each class; its interval
combines theirs (MOVER; Zou and Donner, Statistics in Medicine 27, 2008, equation 8). The true share has Wilson's.
The same is told of the random control, whose estimate is the sweep's at margin 0, where every face passes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fer_pipeline.artifacts.mined import ALL_CLASSES
from fer_pipeline.evaluation.statistics import Interval, share_interval
from fer_pipeline.reporting.charts import Dot, dots
from fer_pipeline.reporting.palette import BLUE, GREY, VERMILION
from fer_pipeline.reporting.tables import ends
from fer_pipeline.reporting.truth import Truth

Kind = Literal["mined", "random"]


@dataclass(frozen=True)
class Precision:
    """The precision of one class of one pool (`ALL_CLASSES` for the pool as a whole)."""

    kind: Kind
    pool: str
    name: str
    kept: int
    estimated: Interval | None
    true: Interval | None
    unknown: int  # faces of a pool with truth that the truth does not name

    @property
    def gap(self) -> float | None:
        """Estimated minus true."""
        return None if self.estimated is None or self.true is None else self.estimated.mean - self.true.mean


def precisions(
    rows: pa.Table,
    *,
    kind: Kind,
    pools: Sequence[str],
    classes: Sequence[str],
    by_class: Mapping[str, Any],
    truth: Truth,
) -> list[Precision]:
    """Every pool as a whole and by class; `by_class` has `precision`, `low`, `high` of each class or None."""
    found = []
    labels, owners, faces = (rows[name].to_pylist() for name in ("label", "pool", "face_id"))
    for pool in pools:
        members = {name: [] for name in classes}
        for label, owner, face_id in zip(labels, owners, faces, strict=True):
            if owner == pool:
                members[classes[int(label)]].append(face_id)
        kept = {name: len(faces_of) for name, faces_of in members.items()}
        right = {name: [truth.right(pool, face, name) for face in faces_of] for name, faces_of in members.items()}
        everyone = [said for answers in right.values() for said in answers]
        found.append(_row(kind, pool, ALL_CLASSES, everyone, combined(by_class, kept), pool in truth.pools))
        for name in classes:
            found.append(_row(kind, pool, name, right[name], combined(by_class, {name: 1}), pool in truth.pools))
    return found


def combined(by_class: Mapping[str, Any], kept: Mapping[str, int]) -> Interval | None:
    """The mean precision of a set with these counts per class; classes without an estimate are left out."""
    weights = {name: count for name, count in kept.items() if count and by_class[name]["precision"] is not None}
    total = sum(weights.values())
    if not total:
        return None
    parts = [(count / total, by_class[name]) for name, count in weights.items()]
    mean = sum(part * found["precision"] for part, found in parts)
    if any(found["low"] is None or found["high"] is None for _, found in parts):
        return Interval(mean, None, None, total)
    below = math.sqrt(sum((part * (found["precision"] - found["low"])) ** 2 for part, found in parts))
    above = math.sqrt(sum((part * (found["high"] - found["precision"])) ** 2 for part, found in parts))
    return Interval(mean, max(0.0, mean - below), min(1.0, mean + above), total)


def unfiltered(sweep: pa.Table) -> dict[str, Any]:
    """The classes' estimates at the sweep's lowest margin, where every face passes."""
    rows = sweep.to_pylist()
    least = min(row["margin"] for row in rows)
    return {row["class"]: row for row in rows if row["margin"] == least}


def chart(rows: Sequence[Precision]) -> bytes | None:
    """Pools as a whole: estimated and true, mined and random."""
    drawn = []
    for row in rows:
        if row.name == ALL_CLASSES:
            values = [_dot(row.estimated, GREY, "D", "estimated on the anchor")] if row.estimated else []
            values += (
                [_dot(row.true, BLUE if row.kind == "mined" else VERMILION, "o", f"true, {row.kind}")]
                if row.true
                else []
            )
            drawn += [(f"{row.pool}\n{row.kind}", values)] if values else []
    return dots(drawn, xlabel="right pseudo-labels") if drawn else None


def table_rows(rows: Sequence[Precision]) -> list[dict[str, object]]:
    """The rows of the CSV."""
    nothing = Interval(math.nan, None, None, 0)
    return [
        {
            "kind": row.kind,
            "pool": row.pool,
            "class": row.name,
            "faces": row.kept,
            "estimated": (row.estimated or nothing).mean,
            **ends("estimated", row.estimated or nothing),
            "true": (row.true or nothing).mean,
            **ends("true", row.true or nothing),
            "gap": row.gap,
            "truth_unknown": row.unknown,
        }
        for row in rows
    ]


def _row(
    kind: Kind, pool: str, name: str, right: Sequence[bool | None], estimated: Interval | None, has_truth: bool
) -> Precision:
    told = [said for said in right if said is not None]
    true = share_interval(sum(told), len(told)) if told else None
    return Precision(kind, pool, name, len(right), estimated, true, len(right) - len(told) if has_truth else 0)


def _dot(interval: Interval, colour: str, marker: str, label: str) -> Dot:
    return Dot(interval.mean, interval.low, interval.high, colour, marker, label)


def sweep_path(data: Path) -> Path:
    """Where the sweep lies."""
    return data / "mined" / "sweep.parquet"
