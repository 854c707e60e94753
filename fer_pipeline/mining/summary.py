"""Turn what the margin rule selected into rows to write, counts, an estimated precision, and lines for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from fer_pipeline.artifacts.mined import mined_schema
from fer_pipeline.core.errors import DataError
from fer_pipeline.mining.calibration import Calibration
from fer_pipeline.mining.candidates import Candidates
from fer_pipeline.mining.margin import first_of_class

Thresholds = Float64[np.ndarray, " c"]
Chosen = Int64[np.ndarray, " k"]


def rank_faces(
    candidates: Candidates, chosen: Chosen, *, caps: Int64[np.ndarray, " c"], classes: Sequence[str]
) -> pa.Table:
    """Makes the rows of mined.parquet for some candidates: by class and rank, cut off at the caps."""
    face_ids = candidates.face_ids(chosen)
    if len(set(face_ids)) < len(face_ids):
        raise DataError(
            f"the pools {', '.join(candidates.counts)} share face_ids; name each data set differently and rerun align"
        )
    order, ranks = first_of_class(candidates.label[chosen], candidates.best[chosen], face_ids, caps=caps)
    rows = chosen[order]
    columns = [
        pa.array(face_ids, pa.string()).take(pa.array(order)),
        pa.array(list(candidates.counts), pa.string()).take(pa.array(candidates.pool[rows])),
        *(pa.array(values[rows]) for values in (candidates.label, candidates.best, candidates.margin)),
        pa.array(ranks),
    ]
    return pa.Table.from_arrays(columns, schema=mined_schema(classes))


def check_any_passed(candidates: Candidates, thresholds: Thresholds, passed: Chosen) -> None:
    """Refuses a rule that selects nothing and says what would select something."""
    if len(passed):
        return
    if not len(candidates):
        names = ", ".join(candidates.counts)
        raise DataError(f"no face of {names} is left to mine; check mine.exclude and the summary of score")
    margins = candidates.margin.astype(np.float64)
    finite = thresholds[np.isfinite(thresholds)]
    rule = f"a margin of {finite.min():g}" if len(finite) else "the margin rule"
    offers = [float(f"{margins.max() * share:.2g}") for share in (0.75, 0.5, 0.25)]
    would = ", ".join(f"{offer:g} would keep {int((margins >= offer).sum()):,}" for offer in offers)
    raise DataError(
        f"{rule} keeps none of {len(margins):,} faces; the largest margin present is {margins.max():.4g} "
        f"({would}); change mine.value"
    )


def describe_empty_classes(
    labels: Chosen, thresholds: Thresholds, calibration: Calibration, classes: Sequence[str]
) -> str:
    """Returns one line about the classes without a mined face, empty where there are none."""
    reasons = []
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
        margins = calibration.pool[k]
        largest = f"largest margin {margins[-1]:.4g}" if len(margins) else "never predicted"
        wanted = f"asked {thresholds[k]:.4g}" if np.isfinite(thresholds[k]) else "no margin meets the rule"
        reasons.append(f"{classes[k]} ({largest}, {wanted})")
    if not reasons:
        return ""
    return f"no face was mined for {', '.join(reasons)}; lower mine.value or give the class its own margin"


def expected_precision(
    calibration: Calibration, thresholds: Thresholds, num_mined: Int64[np.ndarray, " c"], *, classes: Sequence[str]
) -> dict[str, Any]:
    """Estimates the precision of every class and of the whole mined set, for the summary; `num_mined` a class."""
    estimate = calibration.estimate(thresholds[None])
    mean, low, high = (json_number(value[0]) for value in estimate.combined(num_mined[None]))
    passed = calibration.count_passing(thresholds[None])[0]
    by_class = {
        name: {
            "kept": int(num_mined[k]),
            "passed": int(passed[k]),
            "heldout": int(estimate.heldout[0, k]),
            **{key: json_number(getattr(estimate, key)[0, k]) for key in ("precision", "low", "high")},
        }
        for k, name in enumerate(classes)
    }
    precision = {"estimate": mean, "low": low, "high": high, "level": calibration.settings.level}
    return {"by_class": by_class, "precision": precision}


def json_number(value: float) -> float | None:
    """Returns a float for JSON, where neither NaN nor infinity exists."""
    return float(value) if np.isfinite(value) else None


def count_pools(
    candidates: Candidates, passed: Chosen, mined: pa.Table, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Counts where every face of every pool went."""
    pools, labels = np.array(mined.column("pool").to_pylist(), dtype=object), mined.column("label").to_numpy()
    counts = {}
    for i, (name, before) in enumerate(candidates.counts.items()):
        num_passed = int((candidates.pool[passed] == i).sum())
        by_class = np.bincount(labels[pools == name], minlength=len(classes)).tolist()
        counts[name] = {
            **before,
            "below_margin": int((candidates.pool == i).sum()) - num_passed,
            "over_cap": num_passed - sum(by_class),
            "kept": sum(by_class),
            "by_class": dict(zip(classes, by_class, strict=True)),
        }
    return counts


def headline(summary: Mapping[str, Any]) -> str:
    """Says how much was mined of what, and with which expected precision."""
    faces = sum(pool["faces"] for pool in summary["pools"].values())
    shares = ", ".join(f"{name} {counts['kept']:,}" for name, counts in summary["by_class"].items())
    expected = summary["precision"]
    precision = "no held-out face to estimate the precision with"
    if expected["estimate"] is not None:
        precision = f"expected precision {expected['estimate']:.3f} ({expected['low']:.3f} to {expected['high']:.3f})"
    return f"{summary['kept']:,} of {faces:,} faces mined ({shares}); {precision}"
