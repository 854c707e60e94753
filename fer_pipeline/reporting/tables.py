"""Write the CSV files of `reports/tables`: long tables with plain columns, shares of 1 and not percent.

Every number of the page lies there too, unrounded to the page's digits. `mined.json` and `confusion_best.csv` are what
`dvc metrics`, `dvc exp show` and `dvc plots` show of the walk: counts and precision of the mined faces, and the best
recipe's predictions on the first target, a row a face and seed, which DVC's confusion template counts.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.mined import ALL_CLASSES
from fer_pipeline.core.files import write_json, write_text
from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Interval, Part
from fer_pipeline.reporting.claims import describe_seeds
from fer_pipeline.reporting.page import ReportData
from fer_pipeline.reporting.results import DEVIATION, Result

Row = dict[str, Any]
FORMULA = ("=", "+", "-", "@", "\t", "\r")
CLASS_COUNTS = ("kept", "passed", "heldout", "precision", "low", "high")
RULE_COUNTS = ("kept", "precision", "low", "high")
POOL_COUNTS = ("faces", "excluded", "test_faces", "no_direction", "below_margin", "over_cap", "kept")
JUDGED_COUNTS = ("judged_wrong", "relabelled")  # there where faces were judged
MEASURED = ("drawn", "judged", "precision", "low", "high")


def write_tables(folder: Path, data: ReportData) -> None:
    """Write one file a table; a table without rows is not written."""
    tables: dict[str, list[Row]] = {name: [] for name in ("results", "seeds", "classes", "confusion")}
    for result in data.results.values():
        _add_result(tables, result)
    tables["differences"] = [
        {"recipe": row.recipe, "against": row.against, "target": row.target, "metric": row.metric}
        | {"difference": row.contrast.mean, "low": row.interval.low, "high": row.interval.high}
        | {"p_value": row.contrast.p_value, "p_corrected": row.decision.p_value if row.decision else None}
        | {"claim": row.decision.claim if row.decision else None, "seeds": row.contrast.num_seeds}
        | {"sd_seeds": _deviation(row.contrast.seeds), "sd_persons": _deviation(row.contrast.samples)}
        | {"seeds_for_a_point": describe_seeds(row)}
        for row in data.differences
    ]
    is_judged = "review" in (data.mined or {})
    tables["mined"] = [
        {
            "pool": pool,
            **{key: counts.get(key) for key in POOL_COUNTS + JUDGED_COUNTS * is_judged},
            **counts["by_class"],
        }
        for pool, counts in (data.mined["pools"].items() if data.mined else ())
    ]
    tables["precision"] = [
        {"kind": row.kind, "pool": row.pool, "class": row.name, "faces": row.faces}
        | {**_with_ends("estimated", row.estimated), **_with_ends("true", row.true)}
        | {"gap": row.gap, "truth_unknown": row.unknown}
        for row in data.precisions
    ]
    tables["mined_seeds"] = [
        {"seed": row.seed, "pool": row.pool, "class": row.name, "faces": row.faces}
        | {**_with_ends("precision", row.estimated), **_with_ends("true", row.true)}
        for row in data.mined_seeds
    ]
    measured_by = (data.mined or {}).get("heldout", {}).get("model", "")  # where that is not the labeller
    tables["mined_classes"] = [
        {"class": name, **{key: counts.get(key) for key in CLASS_COUNTS}}
        | {f"pool_{key}": (counts.get("pool_share") or {}).get(key) for key in ("share", "low", "high")}
        | {"reason": counts.get("reason", ""), "model": measured_by}
        | {f"measured_{key}": (counts.get("measured") or {}).get(key) for key in MEASURED * is_judged}
        for name, counts in (data.mined["by_class"].items() if data.mined else ())
    ]
    tables["rules"] = [
        {"rule": rule, "class": name, **{key: counts[key] for key in RULE_COUNTS}}
        for rule, whole in (data.mined or {}).get("rules", {}).items()
        for name, counts in {ALL_CLASSES: whole, **whole["by_class"]}.items()
    ]
    tables["sweep"] = data.sweep.to_pylist() if data.sweep is not None else []
    tables["probe"] = [row for one in data.distilled for row in one.probe_rows]
    tables["distilled_controls"] = [row for one in data.distilled for row in one.control_rows]
    means = ("seconds_per_step", "steps_per_epoch", "labelled_seen", "stopped_rising", "times_baseline")
    tables["timings"] = [
        {"recipe": row.recipe, "seeds": row.seconds.count, **_with_ends("seconds_per_epoch", row.seconds)}
        | {name: getattr(row, name) for name in means}
        | {"steps": " ".join(map(str, row.steps)), "peak_memory_bytes": row.peak_memory}
        for row in data.timings
    ]
    tables["published"] = [row.model_dump() for row in data.stated]
    splits = [(one, *pair) for one in data.census for pair in one.splits.items()]
    tables["datasets"] = [
        {"dataset": one.name, "role": one.role, "split": name, "pictures": split.samples, "faces": split.faces}
        | {**one.counts(name), "unlabelled": split.unlabelled}
        for one, name, split in splits
    ]
    tables["rejected"] = [
        {"dataset": one.name, "split": name, "reason": reason, "pictures": number}
        for one, name, split in splits
        for reason, number in split.rejected.items()
    ]
    best = next((result for (name, _), result in data.results.items() if name == data.best_recipe), None)
    tables["confusion_best"] = _list_predictions(best.predictions) if best else []
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)
    write_json(folder / "mined.json", _mined_figures(data.mined) if data.mined else {"kept": 0})


def _list_predictions(predictions: Predictions) -> list[Row]:
    names = predictions.classes
    return [
        {"actual": names[actual], "predicted": names[chosen], "seed": seed}
        for seed, row in zip(predictions.seeds, predictions.predicted, strict=True)
        for actual, chosen in zip(predictions.labels, row, strict=True)
    ]


def _mined_figures(mined: Mapping[str, Any]) -> dict[str, Any]:
    """Counts, estimated and measured precision of mined faces as numbers alone, without those that are not known."""
    precision = {"precision": mined["precision"]["estimate"], "precision_low": mined["precision"]["low"]}
    by_class = {
        name: {key: counts[key] for key in ("kept", "precision")} | _measured_figures(counts)
        for name, counts in mined["by_class"].items()
    }
    known = [{"kept": mined["kept"], **precision, **_measured_figures(mined["precision"])}, *by_class.values()]
    whole, *parts = ({key: value for key, value in one.items() if value is not None} for one in known)
    return {**whole, "by_class": dict(zip(by_class, parts, strict=True))}


def _measured_figures(counts: Mapping[str, Any]) -> dict[str, Any]:
    measured = counts.get("measured") or {}
    return {"judged": measured.get("judged")} | {f"measured_{key}": measured.get(key) for key in ("precision", "low")}


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with one set of keys; nothing where there is no row."""
    if not rows:
        return
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        assert row.keys() == rows[0].keys(), f"{path.name}: rows with different columns"
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_text(path, stream.getvalue())


def _cell(value: object) -> str:
    """Shares with six digits, nothing for what is missing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6f}"
    # A spreadsheet would run a name that begins like a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else str(value)


def _deviation(parts: Sequence[Part]) -> float | None:
    """The standard deviation of a difference by one of the two things that it varies with."""
    return math.sqrt(sum(part.variance for part in parts)) if parts else None


def _ends(name: str, interval: Interval | None) -> Row:
    return {f"{name}_low": interval.low if interval else None, f"{name}_high": interval.high if interval else None}


def _with_ends(name: str, interval: Interval | None) -> Row:
    return {name: interval.mean if interval else None, **_ends(name, interval)}


def _add_result(tables: dict[str, list[Row]], result: Result) -> None:
    place: Row = {"recipe": result.recipe, "target": result.target}
    first, classes = result.first, result.predictions.classes
    num_seeds = len(result.seeds) if result.predictions.trained else 0  # none of a published network
    row = {**place, "seeds": num_seeds, "faces": first.num_samples, "absent_classes": " ".join(first.absent)}
    for name in METRICS:
        row |= {name: result.over_seeds[name].mean, **_ends(f"{name}_seeds", result.over_seeds[name])}
        row |= _ends(f"{name}_faces", result.over_samples[name])
    row |= _ends(f"{DEVIATION}_both", result.over_both(DEVIATION))
    tables["results"].append(row)
    tables["seeds"] += [
        {**place, "seed": seed, **{name: getattr(figures, name) for name in METRICS}}
        for seed, figures in result.seeds.items()
    ]
    confusion = result.predictions.confusions.sum(0)
    for actual, name in enumerate(classes):
        for predicted, other in enumerate(classes if name in first.class_accuracies else ()):
            share = result.share(actual, predicted)
            pair = {"actual": name, "predicted": other, "count": int(confusion[actual, predicted])}
            tables["confusion"].append({**place, **pair, **_with_ends("share", share)})
            if predicted == actual:
                accuracy = _with_ends("accuracy", share)
                tables["classes"].append({**place, "class": name, "faces": first.supports[name], **accuracy})
