"""Evidence in, the CSV files of `reports/tables` out: long tables with plain columns, shares of 1 and not percent."""

from pathlib import Path

from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.reporting.confusions import confusion_rows
from fer_pipeline.reporting.evidence import METRIC, Evidence
from fer_pipeline.reporting.mined import count_rows
from fer_pipeline.reporting.precision import table_rows
from fer_pipeline.reporting.results import Result
from fer_pipeline.reporting.sweep import sweep_rows
from fer_pipeline.reporting.tables import ends, write_table

Rows = list[dict[str, object]]


def write_tables(folder: Path, evidence: Evidence) -> None:
    """One file a table; a table without rows is not written."""
    results = list(evidence.results.values())
    tables: dict[str, Rows] = {
        "results": [_result(result) for result in results],
        "seeds": [row for result in results for row in _seeds(result)],
        "classes": [row for result in results for row in _classes(result)],
        "confusion": [row for result in results for row in confusion_rows(result)],
        "differences": _differences(evidence),
        "mined": count_rows(evidence.mined.summary) if evidence.mined else [],
        "precision": table_rows(evidence.precisions),
        "sweep": sweep_rows(evidence.sweep) if evidence.sweep else [],
        "probe": [row for one in evidence.distilled for row in one.probe_rows],
        "timings": [
            {
                "recipe": row.recipe,
                "seeds": row.seconds.count,
                "seconds_per_epoch": row.seconds.mean,
                **ends("seconds_per_epoch", row.seconds),
                "seconds_per_step": row.seconds_per_step,
                "steps_per_epoch": row.steps_per_epoch,
                "steps": row.steps,
                "times_baseline": row.times_baseline,
            }
            for row in evidence.timings
        ],
        "datasets": [
            {
                "dataset": one.name,
                "role": one.role,
                "split": split.name,
                "pictures": split.samples,
                "faces": split.faces,
                **split.counts,
                "unlabelled": split.unlabelled,
            }
            for one in evidence.census
            for split in one.splits
        ],
        "rejected": [
            {"dataset": one.name, "split": split.name, "reason": reason, "pictures": number}
            for one in evidence.census
            for split in one.splits
            for reason, number in split.rejected.items()
        ],
    }
    for name, rows in tables.items():
        write_table(folder / f"{name}.csv", rows)


def _result(result: Result) -> dict[str, object]:
    row: dict[str, object] = {
        "recipe": result.recipe,
        "target": result.target,
        "seeds": len(result.seeds),
        "faces": result.first.num_samples,
        "absent_classes": " ".join(result.first.absent),
    }
    for name in METRICS:
        row |= {name: result.over_seeds[name].mean, **ends(f"{name}_seeds", result.over_seeds[name])}
        row |= ends(f"{name}_faces", result.over_samples[name])
    return row


def _seeds(result: Result) -> Rows:
    return [
        {
            "recipe": result.recipe,
            "target": result.target,
            "seed": seed,
            **{name: getattr(found, name) for name in METRICS},
        }
        for seed, found in result.seeds.items()
    ]


def _classes(result: Result) -> Rows:
    classes = result.predictions.classes
    rows = []
    for k, name in enumerate(classes):
        if result.first.supports[name]:
            cell = result.cell(k, k)
            place = {"recipe": result.recipe, "target": result.target, "class": name}
            rows.append(
                {**place, "faces": result.first.supports[name], "accuracy": cell.mean, **ends("accuracy", cell)}
            )
    return rows


def _differences(evidence: Evidence) -> Rows:
    return [
        {
            "recipe": row.recipe,
            "against": row.against,
            "target": row.target,
            "metric": metric,
            "difference": row.over_seeds.mean,
            **ends("seeds", row.over_seeds),
            **ends("faces", row.over_samples),
            "seeds": row.over_seeds.count,
        }
        for metric in (METRIC, "accuracy")
        for row in evidence.of_metric(metric)
    ]
