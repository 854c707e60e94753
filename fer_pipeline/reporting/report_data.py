"""Collect what the report shows from the project's folder: results, mining, distillation, cost, data and lineage.

A part that this run does not have (no truth, no distillation, no timings) is empty and the page says so; a part that is
there and damaged is a DataError.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.mined import SUMMARY, read_summary
from fer_pipeline.artifacts.truth import Truth, read_truth
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.evaluation.summary import Resampling
from fer_pipeline.reporting.galleries import Face, load_failures, load_mined_faces
from fer_pipeline.reporting.lineage import DataSet, Lineage, load_census, read_lineage
from fer_pipeline.reporting.mining import Precision, Sweep, compute_precisions, load_sweep
from fer_pipeline.reporting.results import (
    METRIC,
    Difference,
    Results,
    best_recipe,
    compute_differences,
    list_pairs,
    load_results,
)
from fer_pipeline.reporting.trainings import (
    DistilledSet,
    History,
    Timing,
    load_distilled_sets,
    load_histories,
    load_timings,
)


@dataclass(frozen=True)
class Selection:
    """What is compared and how much is shown; `controls` and `descriptions` are by recipe."""

    baseline: str
    resampling: Resampling
    controls: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    faces_per_class: int = 10
    failures_per_class: int = 4


@dataclass(frozen=True)
class ReportData:
    """All that the report shows of one run."""

    results: Results
    comparisons: dict[tuple[str, str], list[tuple[Difference, Difference]]]  # in mean class accuracy, in accuracy
    truth: Truth
    mined: dict[str, Any] | None  # the summary
    mined_faces: dict[str, list[Face]]
    precisions: list[Precision]
    sweep: Sweep | None
    distilled: list[DistilledSet]
    timings: list[Timing]
    histories: dict[str, list[History]]
    best_recipe: str
    failures: dict[str, list[Face]]  # of the best recipe, by target
    census: list[DataSet]
    lineage: Lineage

    @property
    def differences(self) -> list[Difference]:
        """All differences in mean class accuracy, then those in accuracy."""
        rows = [row for group in self.comparisons.values() for row in group]
        return [mean for mean, _ in rows] + [accuracy for _, accuracy in rows]


def collect(root: Path, project: ProjectSettings, selection: Selection) -> ReportData:
    """Read everything under the project's folder."""
    recipes, classes, data = list(project.recipes), project.classes, root / "data"
    metrics = root / "reports" / "metrics"
    results = load_results(metrics, project, selection.resampling)
    comparisons = {}
    for recipe, against in list_pairs(recipes, baseline=selection.baseline, controls=selection.controls):
        means, accuracies = (
            compute_differences(results, recipe=recipe, against=against, targets=project.targets, metric=metric)
            for metric in (METRIC, "accuracy")
        )
        if means:
            comparisons[recipe, against] = list(zip(means, accuracies, strict=True))
    truth = read_truth(data / "truth", project.pools)
    sweep = load_sweep(data, classes=classes, truth=truth)
    mined, faces, precisions = None, {}, []
    if (data / "mined" / SUMMARY).exists():
        mined = read_summary(data / "mined")
        faces = load_mined_faces(data, classes=classes, truth=truth, per_class=selection.faces_per_class)
        precisions = compute_precisions(data / "mined", mined["by_class"], sweep, project, truth)
    best = best_recipe(results)
    return ReportData(
        results=results,
        comparisons=comparisons,
        truth=truth,
        mined=mined,
        mined_faces=faces,
        precisions=precisions,
        sweep=sweep,
        distilled=load_distilled_sets(data / "distilled"),
        timings=load_timings(root / "reports" / "timings", recipes, baseline=selection.baseline),
        histories=load_histories(root / "models" / "final", recipes, project.seeds),
        best_recipe=best,
        failures=load_failures(metrics, recipe=best, targets=project.targets, per_class=selection.failures_per_class),
        census=load_census(root / "reports" / "census", project),
        lineage=read_lineage(root, project),
    )
