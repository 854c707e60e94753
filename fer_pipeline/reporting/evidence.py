"""The project's folder in, everything that the page shows out: results, mining, distillation, cost, data, lineage.

A part that this run does not have (no truth, no distillation, no timings) is empty and the page says so; a part that is
there and damaged is a DataError.
"""

from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.artifacts.mined import ALL_CLASSES, RANDOM, read_rows
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.reporting.census import DataSet, census
from fer_pipeline.reporting.distilled import DistilledSet, distilled_sets
from fer_pipeline.reporting.failures import Gallery, galleries
from fer_pipeline.reporting.histories import History, read_histories
from fer_pipeline.reporting.lineage import Lineage, lineage
from fer_pipeline.reporting.mined import Mined, mined_set
from fer_pipeline.reporting.precision import Precision, precisions, unfiltered
from fer_pipeline.reporting.results import (
    Difference,
    Resampling,
    Results,
    best_recipe,
    differences,
    load_results,
    pairs,
)
from fer_pipeline.reporting.sweep import Sweep, read_sweep
from fer_pipeline.reporting.timings import Timing, read_timings
from fer_pipeline.reporting.truth import Truth, read_truth

METRIC = "mean_class_accuracy"


@dataclass(frozen=True)
class Comparison:
    """One recipe against another on one target, in both accuracies."""

    target: str
    mean: Difference
    accuracy: Difference


@dataclass(frozen=True)
class Evidence:
    """All that is known of one run."""

    results: Results
    comparisons: dict[tuple[str, str], list[Comparison]]
    truth: Truth
    mined: Mined | None
    precisions: list[Precision]
    sweep: Sweep | None
    distilled: list[DistilledSet]
    timings: list[Timing]
    histories: dict[str, list[History]]
    galleries: list[Gallery]
    census: list[DataSet]
    lineage: Lineage

    def of_metric(self, metric: str) -> list[Difference]:
        """All differences in one figure."""
        rows = [row for found in self.comparisons.values() for row in found]
        return [row.mean if metric == METRIC else row.accuracy for row in rows]


def gather(
    root: Path,
    world: ProjectSettings,
    resampling: Resampling,
    *,
    baseline: str,
    faces_per_class: int,
    failures_per_class: int,
) -> Evidence:
    """Reads everything under the project's folder."""
    data, metrics = root / "data", root / "reports" / "metrics"
    results = load_results(metrics, world, resampling)
    comparisons = {}
    for recipe, against in pairs(world, baseline=baseline):
        named = {"recipe": recipe, "against": against, "targets": world.targets}
        means = differences(results, metric=METRIC, **named)
        accuracies = differences(results, metric="accuracy", **named)
        if means:
            both = zip(means, accuracies, strict=True)
            comparisons[recipe, against] = [Comparison(mean.target, mean, accuracy) for mean, accuracy in both]
    truth = read_truth(data / "truth", world.pools)
    mined = mined_set(data, classes=world.classes, truth=truth, per_class=faces_per_class)
    sweep = read_sweep(data, classes=world.classes, truth=truth)
    shown = best_recipe(results, list(world.recipes), METRIC)
    assert shown is not None
    return Evidence(
        results=results,
        comparisons=comparisons,
        truth=truth,
        mined=mined,
        precisions=_precisions(data, world, mined, sweep, truth) if mined else [],
        sweep=sweep,
        distilled=distilled_sets(data / "distilled"),
        timings=read_timings(root / "reports" / "timings", list(world.recipes), baseline=baseline),
        histories=read_histories(root / "models" / "final", list(world.recipes), world.seeds),
        galleries=galleries(metrics, recipe=shown, targets=world.targets, per_class=failures_per_class),
        census=census(root / "reports" / "census", world),
        lineage=lineage(root, world),
    )


def _precisions(data: Path, world: ProjectSettings, mined: Mined, sweep: Sweep | None, truth: Truth) -> list[Precision]:
    shared = {"pools": world.pools, "classes": world.classes, "truth": truth}
    found = precisions(mined.rows, kind="mined", by_class=mined.summary["by_class"], **shared)
    if sweep is not None and (data / "mined" / RANDOM).exists():
        rows = read_rows(data / "mined", RANDOM, classes=world.classes)
        found += precisions(rows, kind="random", by_class=unfiltered(sweep.table), **shared)
    return [row for row in found if row.kept or row.name == ALL_CLASSES]
