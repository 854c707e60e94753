"""What another margin would have kept: counts and estimated precision from `sweep.parquet`, true precision from truth.

The true curve takes the pool's scores and its truth: at a margin m it is the share of right labels among the faces
whose margin is at least m, all pools with a known truth apart from each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float64

from fer_pipeline.artifacts.mined import ALL_CLASSES, SWEEP
from fer_pipeline.artifacts.scores import read_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.reporting.charts import Line, lines
from fer_pipeline.reporting.palette import GREY, INK, series_colours
from fer_pipeline.reporting.truth import Truth

Margins = Float64[np.ndarray, " t"]


@dataclass(frozen=True)
class Sweep:
    """The sweep, and the true precision of every pool whose truth is known at the same margins (NaN: nothing kept)."""

    table: pa.Table
    margin: Margins
    true: dict[str, Margins]


def read_sweep(data: Path, *, classes: Sequence[str], truth: Truth) -> Sweep | None:
    """The sweep under `data/mined`; None where there is none."""
    path = data / "mined" / SWEEP
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        margin = _all(table)["margin"].to_numpy()
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); run: dvc repro mine") from None
    pools = [pool for pool in truth.pools if (data / "scores" / pool).is_dir()]
    return Sweep(
        table, margin, {pool: true_curve(data / "scores" / pool, pool, margin, classes, truth) for pool in pools}
    )


def true_curve(scores: Path, pool: str, margins: Margins, classes: Sequence[str], truth: Truth) -> Margins:
    """The share of right labels among the faces with at least each margin; faces without truth are left out."""
    found = read_scores(scores, classes=classes)
    face_ids = found.face_id.to_pylist()
    answers = [truth.right(pool, face, classes[int(k)]) for face, k in zip(face_ids, found.nearest, strict=True)]
    known = np.asarray([answer is not None for answer in answers], dtype=bool) & found.directed
    right = np.asarray([bool(answer) for answer in answers], dtype=bool)[known]
    margin = found.margin[known].astype(np.float64)
    order = np.argsort(-margin, kind="stable")
    hits = np.concatenate([[0], np.cumsum(right[order])])
    kept = len(margin) - np.searchsorted(np.sort(margin), margins, side="left")
    return np.divide(hits[kept], kept, out=np.full(len(margins), np.nan), where=kept > 0)


def kept_chart(sweep: Sweep, *, used: float | None) -> bytes:
    """Faces kept over the margin."""
    rows = _all(sweep.table)
    kept = np.maximum(rows["kept"].to_numpy(), 0).astype(float)
    kept[kept == 0] = np.nan  # a logarithm has no zero
    series = [Line("kept, all pools", sweep.margin.tolist(), kept.tolist(), INK)]
    return lines(
        series, xlabel="margin", ylabel="faces kept", logarithmic=True, mark=used, mark_name="margin used", height=2.5
    )


def precision_chart(sweep: Sweep, *, used: float | None) -> bytes:
    """Estimated precision with its interval, and the true precision of every pool with a truth."""
    rows = _all(sweep.table)
    mean, low, high = (rows[name].to_numpy(zero_copy_only=False).astype(float) for name in ("precision", "low", "high"))
    margin = sweep.margin.tolist()
    series = [Line("estimated", margin, mean.tolist(), GREY, "--", low=low.tolist(), high=high.tolist())]
    colours = series_colours(sweep.true)
    series += [Line(f"true, {pool}", margin, curve.tolist(), colours[pool]) for pool, curve in sweep.true.items()]
    return lines(
        series, xlabel="margin", ylabel="right labels", percent=True, mark=used, mark_name="margin used", height=2.9
    )


def sweep_rows(sweep: Sweep) -> list[dict[str, object]]:
    """The rows of the CSV: the sweep's own, and the true precision of each pool in the rows of all classes."""
    place = {margin: index for index, margin in enumerate(sweep.margin.tolist())}
    found = []
    for row in sweep.table.to_pylist():
        whole = row["class"] == ALL_CLASSES
        true = {
            f"true_{pool}": float(curve[place[row["margin"]]]) if whole else None for pool, curve in sweep.true.items()
        }
        found.append({**row, **true})
    return found


def _all(table: pa.Table) -> pa.Table:
    return table.filter(pc.field("class") == ALL_CLASSES).sort_by("margin")
