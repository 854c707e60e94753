"""What the margin rule did, in: rows to write, and what a person must be told: errors, warnings, counts, precision."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from fer_pipeline.artifacts.mined import mined_schema
from fer_pipeline.core.errors import DataError
from fer_pipeline.mining.calibration import Calibration
from fer_pipeline.mining.margin import first_of_class
from fer_pipeline.mining.pools import Candidates

COUNTS = ("faces", "excluded", "no_direction", "below_margin", "over_cap", "kept")

Thresholds = Float64[np.ndarray, " c"]
Chosen = Int64[np.ndarray, " k"]


def ranked(
    candidates: Candidates, chosen: Chosen, *, caps: Int64[np.ndarray, " c"], classes: Sequence[str]
) -> pa.Table:
    """Rows of mined.parquet for some candidates: by class and rank, cut off at the caps."""
    face_ids = candidates.face_ids(chosen)
    if len(set(face_ids)) < len(face_ids):
        raise DataError(
            f"the pools {', '.join(candidates.names)} share face_ids; name each data set differently and rerun align"
        )
    order, ranks = first_of_class(candidates.label[chosen], candidates.best[chosen], face_ids, caps=caps)
    rows = chosen[order]
    columns = [
        pa.array([face_ids[i] for i in order], pa.string()),
        pa.array([candidates.names[i] for i in candidates.pool[rows]], pa.string()),
        pa.array(candidates.label[rows]),
        pa.array(candidates.best[rows]),
        pa.array(candidates.margin[rows]),
        pa.array(ranks),
    ]
    return pa.Table.from_arrays(columns, schema=mined_schema(classes))


def refuse_nothing(candidates: Candidates, thresholds: Thresholds, passed: Chosen) -> None:
    """A rule that keeps nothing is an error that says what would keep something."""
    if len(passed):
        return
    if not len(candidates):
        names = ", ".join(candidates.names)
        raise DataError(f"no face of {names} is left to mine; check mine.exclude and the summary of score")
    margins = np.sort(candidates.margin.astype(np.float64))
    finite = thresholds[np.isfinite(thresholds)]
    asked = f"a margin of {finite.min():g}" if len(finite) else "the margin rule"
    offers = [float(f"{margins[-1] * share:.2g}") for share in (0.75, 0.5, 0.25)]
    would = ", ".join(f"{offer:g} would keep {int((margins >= offer).sum()):,}" for offer in offers)
    raise DataError(
        f"{asked} keeps none of {len(margins):,} faces; the largest margin present is {margins[-1]:.4g} "
        f"({would}); change mine.value"
    )


def empty_classes(labels: Chosen, thresholds: Thresholds, calibration: Calibration, classes: Sequence[str]) -> str:
    """One line about the classes without a mined face, empty where there are none."""
    told = []
    for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0).tolist():
        margins = calibration.pool[k]
        seen = f"largest margin {margins[-1]:.4g}" if len(margins) else "never predicted"
        asked = f", asked {thresholds[k]:.4g}" if np.isfinite(thresholds[k]) else ", no margin meets the rule"
        told.append(f"{classes[k]} ({seen}{asked})")
    return f"no face was mined for {', '.join(told)}; lower mine.value or give the class its own margin" if told else ""


def blind_classes(calibration: Calibration, classes: Sequence[str]) -> str:
    """One line about the classes whose precision cannot be estimated, empty where there are none."""
    blind = [name for name, covered in zip(classes, calibration.covered, strict=True) if not covered]
    return f"no held-out face is predicted {', '.join(blind)}: the estimated precision leaves it out" if blind else ""


def expected_precision(
    calibration: Calibration,
    thresholds: Thresholds,
    kept: Int64[np.ndarray, " c"],
    *,
    classes: Sequence[str],
) -> dict[str, Any]:
    """The estimated precision of every class and of the whole mined set, for the summary."""
    found = calibration.estimate(thresholds[None, :])
    mean, low, high = (number(value[0]) for value in found.combined(kept[None, :]))
    passed = calibration.kept(thresholds[None, :])[0]
    by_class = {
        name: {
            "kept": int(kept[k]),
            "passed": int(passed[k]),
            "heldout": int(found.heldout[0, k]),
            "precision": number(found.precision[0, k]),
            "low": number(found.low[0, k]),
            "high": number(found.high[0, k]),
        }
        for k, name in enumerate(classes)
    }
    return {"by_class": by_class, "precision": {"estimate": mean, "low": low, "high": high, "level": calibration.level}}


def number(value: float) -> float | None:
    """A float for JSON, where neither NaN nor infinity exists."""
    return float(value) if np.isfinite(value) else None


def count_pools(candidates: Candidates, passed: Chosen, mined: pa.Table, classes: Sequence[str]) -> dict[str, Any]:
    """Where every face of every pool went."""
    pools = np.array(mined.column("pool").to_pylist(), dtype=object)
    labels = mined.column("label").to_numpy()
    counted = {}
    for i, name in enumerate(candidates.names):
        through = int((candidates.pool[passed] == i).sum())
        own = labels[pools == name]
        counted[name] = {
            "faces": candidates.faces[i],
            "excluded": candidates.excluded[i],
            "no_direction": candidates.undirected[i],
            "below_margin": int((candidates.pool == i).sum()) - through,
            "over_cap": through - len(own),
            "kept": len(own),
            "by_class": {label: int((own == k).sum()) for k, label in enumerate(classes)},
        }
    return counted


def headline(summary: dict[str, Any]) -> str:
    """What a person wants to know first."""
    faces = sum(pool["faces"] for pool in summary["pools"].values())
    shares = ", ".join(f"{name} {found['kept']:,}" for name, found in summary["by_class"].items())
    expected = summary["precision"]
    precision = "no held-out face to estimate the precision with"
    if expected["estimate"] is not None:
        precision = f"expected precision {expected['estimate']:.3f} ({expected['low']:.3f} to {expected['high']:.3f})"
    return f"{summary['kept']:,} of {faces:,} faces mined ({shares}); {precision}"
