"""Compute every recipe's results on every target from its predictions, and compare recipes with each other.

All figures come from `predictions.parquet`, so that the page's numbers rest on one file. A difference is paired twice:
seed by seed (t interval of the mean difference) and test face by test face (both recipes meet the same bootstrap
replicates). `ALL` stands for the plain mean over the targets, each of equal weight.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_pipeline.artifacts.metrics import PREDICTIONS, read_predictions
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.evaluation import statistics
from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Evaluation, Interval, Resampling, mean_interval, percentile_interval
from fer_pipeline.reporting.charts import BLUE, VERMILION
from fer_pipeline.reporting.formatting import percent, span

ALL = "all targets"
METRIC = "mean_class_accuracy"  # decides
STRONGEST = 0.72  # of the full colour, so that dark text keeps a contrast of 4.5 on every shade


@dataclass(frozen=True)
class Result(Evaluation):
    """The figures of one recipe on one target."""

    recipe: str
    target: str


Results = dict[tuple[str, str], Result]  # by recipe and target


class Difference(NamedTuple):
    """One recipe minus another on one target, for one figure."""

    recipe: str
    against: str
    target: str
    metric: str
    over_seeds: Interval
    over_samples: Interval


Cell = tuple[str, str, str]  # of the confusion table: text, colour of the background, title


def load_results(metrics: Path, project: ProjectSettings, resampling: Resampling) -> Results:
    """Read and evaluate all predictions there are, in the order of the settings."""
    results = {
        (recipe, target): compute_result(recipe, target, read_predictions(path), resampling)
        for recipe in project.recipes
        for target in project.targets
        if (path := metrics / recipe / target / PREDICTIONS).exists()
    }
    if not results:
        recipes = ", ".join(project.recipes)
        raise DataError(f"no results in {metrics} for the recipes {recipes}; run: dvc repro evaluate")
    return results


def compute_result(recipe: str, target: str, predictions: Predictions, resampling: Resampling) -> Result:
    """Compute the figures of one recipe on one target; all recipes meet the same replicates of a target."""
    seed = derive(resampling.bootstrap_seed, target)
    own = statistics.evaluate(predictions, resampling.model_copy(update={"bootstrap_seed": seed}))
    return Result(**vars(own), recipe=recipe, target=target)


def list_pairs(recipes: Sequence[str], *, baseline: str, controls: Mapping[str, str]) -> list[tuple[str, str]]:
    """List which recipes are compared: each with the baseline, then those that have a control with it."""
    pairs = [(name, baseline) for name in recipes if name != baseline] if baseline in recipes else []
    return pairs + [(name, controls[name]) for name in recipes if name in controls and controls[name] != baseline]


def compute_differences(
    results: Results, recipe: str, against: str, *, targets: Sequence[str], metric: str
) -> list[Difference]:
    """Compare two recipes on every target that both were measured on, and on the mean over these if several."""
    pairs = {
        target: (results[recipe, target], results[against, target])
        for target in targets
        if (recipe, target) in results and (against, target) in results
    }
    every = [result for pair in pairs.values() for result in pair]
    seeds = [seed for seed in (every[0].seeds if every else ()) if all(seed in result.seeds for result in every)]
    if not seeds:
        return []
    column = METRICS.index(metric)
    rows, per_seed, replicates = [], [], []
    for target, (one, other) in pairs.items():
        if one.predictions.face_id.tolist() != other.predictions.face_id.tolist():
            both = f"{recipe} and {against}"
            raise DataError(f"{both} were measured on different faces of {target}; run: dvc repro evaluate")
        first, second = ([getattr(result.seeds[seed], metric) for seed in seeds] for result in (one, other))
        per_seed.append(np.subtract(first, second))
        replicates.append(one.replicates.metrics[:, column] - other.replicates.metrics[:, column])
        mean, faces = float(np.mean(per_seed[-1])), one.first.num_samples
        over_samples = percentile_interval(replicates[-1], estimate=mean, count=faces)
        rows.append(Difference(recipe, against, target, metric, mean_interval(per_seed[-1].tolist()), over_samples))
    if len(pairs) > 1:
        means = np.mean(per_seed, axis=0)
        samples = sum(row.over_samples.count for row in rows)
        pooled = percentile_interval(np.mean(replicates, axis=0), estimate=float(means.mean()), count=samples)
        rows.append(Difference(recipe, against, ALL, metric, mean_interval(means.tolist()), pooled))
    return rows


def best_recipe(results: Results) -> str:
    """Return the recipe with the highest mean of `METRIC` over its targets; the first of equals."""
    values = defaultdict(list)
    for (recipe, _), result in results.items():
        values[recipe].append(result.over_seeds[METRIC].mean)
    return max(values, key=lambda recipe: float(np.mean(values[recipe])))


def shade_confusion(result: Result) -> list[list[Cell] | None]:
    """Make the rows of the page's confusion table, shares of the actual class; None where a class has no test face.

    It is a table and no picture, so that it stays sharp, selectable and readable aloud.
    """
    classes, present = result.predictions.classes, result.first.class_accuracies
    rows: list[list[Cell] | None] = [[] if name in present else None for name in classes]
    for (actual, row), predicted in itertools.product(enumerate(rows), range(len(classes))):
        if row is not None:
            interval = result.share(actual, predicted)
            share = float(np.clip(interval.mean, 0, 1))
            title = f"{classes[actual]} taken for {classes[predicted]}: {percent(share)} % ({span(interval)})"
            row.append((percent(share, 0), mix_with_white(BLUE if actual == predicted else VERMILION, share), title))
    return rows


def mix_with_white(colour: str, share: float) -> str:
    """Return white at 0, the strongest shade of the colour at 1."""
    parts = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (part - 255) * share * STRONGEST):02x}" for part in parts)
