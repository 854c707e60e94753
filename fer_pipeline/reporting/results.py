"""Every recipe's predictions on every target in; result rows and paired differences between recipes out.

All figures are computed here from `predictions.parquet`, so that the page's numbers hang on one thing. A difference is
paired twice: seed by seed (t interval of the mean difference) and test face by test face (both recipes meet the same
bootstrap replicates). `ALL` stands for the plain mean over the targets, each of equal weight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.evaluation.metrics import METRICS, Metrics, measure
from fer_pipeline.evaluation.predictions import Predictions, read_predictions
from fer_pipeline.evaluation.statistics import (
    Interval,
    Replicates,
    bootstrap,
    mean_interval,
    paired_interval,
    percentile_interval,
)

ALL = "all targets"
CONTROL_OF = {"mined": "random", "distilled": "random_real"}


@dataclass(frozen=True)
class Resampling:
    """How the test faces are resampled."""

    draws: int
    seed: int
    by_subject: bool


@dataclass(frozen=True)
class Result:
    """One recipe on one target: every seed's figures, and the two intervals of each figure."""

    recipe: str
    target: str
    predictions: Predictions
    seeds: dict[int, Metrics]
    over_seeds: dict[str, Interval]
    over_samples: dict[str, Interval]
    replicates: Replicates

    @property
    def first(self) -> Metrics:
        """The figures of the first seed, for what no seed changes: sizes and absent classes."""
        return next(iter(self.seeds.values()))

    def per_seed(self, metric: str, seeds: Sequence[int]) -> list[float]:
        """One figure, seed by seed."""
        return [getattr(self.seeds[seed], metric) for seed in seeds]

    @property
    def shares(self) -> Float[np.ndarray, "c c"]:
        """The confusion summed over the seeds with rows that sum to 1; rows of absent classes are NaN."""
        total = self.predictions.confusions.sum(0)
        support = total.sum(-1, keepdims=True)
        return np.divide(total, support, out=np.full(total.shape, np.nan), where=support > 0)

    def cell(self, actual: int, predicted: int) -> Interval:
        """One share of the confusion with its interval over the test faces."""
        values = self.replicates.confusion[:, actual, predicted]
        support = self.first.supports[self.predictions.classes[actual]]
        return percentile_interval(values, estimate=float(self.shares[actual, predicted]), count=support)


@dataclass(frozen=True)
class Difference:
    """One recipe minus another on one target, for one figure."""

    recipe: str
    against: str
    target: str
    metric: str
    over_seeds: Interval
    over_samples: Interval


Results = dict[tuple[str, str], Result]


def load_results(metrics: Path, world: ProjectSettings, resampling: Resampling) -> Results:
    """Every result that was evaluated, in the order of the settings."""
    found = {}
    for recipe in world.recipes:
        for target in world.targets:
            path = metrics / recipe / target / "predictions.parquet"
            if path.exists():
                found[recipe, target] = result_of(recipe, target, read_predictions(path), resampling)
    if not found:
        raise DataError(f"no results in {metrics} for the recipes {', '.join(world.recipes)}; run: dvc repro evaluate")
    return found


def result_of(recipe: str, target: str, predictions: Predictions, resampling: Resampling) -> Result:
    """The figures of one recipe on one target."""
    matrices = zip(predictions.seeds, predictions.confusions, strict=True)
    seeds = {seed: measure(matrix, classes=predictions.classes) for seed, matrix in matrices}
    replicates = bootstrap(
        predictions.labels,
        predictions.predicted,
        num_classes=len(predictions.classes),
        subjects=predictions.clusters if resampling.by_subject else None,
        draws=resampling.draws,
        seed=derive(resampling.seed, target),
    )
    over_seeds = {name: mean_interval([getattr(found, name) for found in seeds.values()]) for name in METRICS}
    over_samples = {
        name: percentile_interval(
            replicates.metrics[:, k], estimate=over_seeds[name].mean, count=len(predictions.labels)
        )
        for k, name in enumerate(METRICS)
    }
    return Result(recipe, target, predictions, seeds, over_seeds, over_samples, replicates)


def pairs(world: ProjectSettings, *, baseline: str) -> list[tuple[str, str]]:
    """Which recipes are compared: each with the baseline, then mined and distilled ones with their controls."""
    recipes = world.recipes
    found = [(name, baseline) for name in recipes if name != baseline] if baseline in recipes else []
    for name, settings in recipes.items():
        control = CONTROL_OF.get(settings.use)
        found += [(name, other) for other, its in recipes.items() if its.use == control and other != baseline]
    return found


def differences(
    results: Results, *, recipe: str, against: str, targets: Sequence[str], metric: str
) -> list[Difference]:
    """Both recipes on every target that both were measured on, and the mean over these where they are several."""
    rows, per_seed, replicates = [], [], []
    shared = [target for target in targets if (recipe, target) in results and (against, target) in results]
    seeds = _shared_seeds([results[name, target] for name in (recipe, against) for target in shared])
    if not seeds:
        return []
    column = METRICS.index(metric)
    for target in shared:
        one, other = results[recipe, target], results[against, target]
        _same_faces(one, other)
        first, second = one.per_seed(metric, seeds), other.per_seed(metric, seeds)
        drawn = one.replicates.metrics[:, column] - other.replicates.metrics[:, column]
        estimate = float(np.mean(np.subtract(first, second)))
        rows.append(
            Difference(
                recipe,
                against,
                target,
                metric,
                paired_interval(first, second),
                percentile_interval(drawn, estimate=estimate, count=one.first.num_samples),
            )
        )
        per_seed.append(np.subtract(first, second))
        replicates.append(drawn)
    if len(shared) > 1:
        means = np.mean(per_seed, axis=0)
        samples = sum(row.over_samples.count for row in rows)
        pooled = percentile_interval(np.mean(replicates, axis=0), estimate=float(means.mean()), count=samples)
        rows.append(Difference(recipe, against, ALL, metric, mean_interval(means.tolist()), pooled))
    return rows


def _shared_seeds(results: Sequence[Result]) -> list[int]:
    if not results:
        return []
    return [seed for seed in results[0].seeds if all(seed in result.seeds for result in results)]


def _same_faces(one: Result, other: Result) -> None:
    if one.predictions.face_id.tolist() != other.predictions.face_id.tolist():
        raise DataError(
            f"{one.recipe} and {other.recipe} were measured on different faces of {one.target}; run: dvc repro evaluate"
        )


def best_recipe(results: Mapping[tuple[str, str], Result], recipes: Sequence[str], metric: str) -> str | None:
    """The recipe with the highest mean of a figure over its targets; the first of equals."""
    means = {
        name: np.mean([result.over_seeds[metric].mean for (recipe, _), result in results.items() if recipe == name])
        for name in recipes
        if any(recipe == name for recipe, _ in results)
    }
    return max(means, key=lambda name: float(means[name])) if means else None
