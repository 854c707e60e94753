"""Compute the figures of several seeds on one test set, with intervals over the seeds and over the test faces.

`summarise` nests them as `metrics.json` holds them, so that `dvc metrics show` reads them: the four figures as means
over the seeds on the top level, then `over_seeds` (Student's interval, with two seeds or more), `over_samples` (the
bootstrap's, see `statistics`), every class and every seed. All are fractions of 1.
"""

from dataclasses import dataclass
from typing import Any

from fer_pipeline.evaluation.metrics import METRICS, Metrics, measure, row_shares
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import Interval, Replicates, bootstrap, mean_interval, percentile_interval


@dataclass(frozen=True)
class Resampling:
    """How the test faces are resampled: how often, from which seed, and whether as whole persons where known."""

    draws: int
    seed: int
    by_subject: bool


@dataclass(frozen=True)
class Evaluation:
    """The figures of every seed on one test set, and the two intervals of each figure by its name."""

    predictions: Predictions
    seeds: dict[int, Metrics]
    over_seeds: dict[str, Interval]
    over_samples: dict[str, Interval]
    replicates: Replicates

    @property
    def first(self) -> Metrics:
        """The figures of the first seed, for what no seed changes: sizes and absent classes."""
        return next(iter(self.seeds.values()))

    @property
    def class_accuracies(self) -> dict[str, float]:
        """The accuracy of every class with a test face, mean over the seeds."""
        rows = [seed.class_accuracies for seed in self.seeds.values()]
        return {name: mean_interval([row[name] for row in rows]).mean for name in self.first.class_accuracies}

    def share(self, actual: int, predicted: int) -> Interval:
        """The share of an actual class that was predicted as a class, all seeds together, over the test faces."""
        estimate = float(row_shares(self.predictions.confusions.sum(0))[actual, predicted])
        support = self.first.supports[self.predictions.classes[actual]]
        return percentile_interval(self.replicates.confusion[:, actual, predicted], estimate=estimate, count=support)


def evaluate(predictions: Predictions, resampling: Resampling) -> Evaluation:
    """Compute the figures of every seed and resample the test faces."""
    confusions = zip(predictions.seeds, predictions.confusions, strict=True)
    seeds = {seed: measure(confusion, classes=predictions.classes) for seed, confusion in confusions}
    subjects = predictions.clusters if resampling.by_subject else None
    size, draws, seed = len(predictions.classes), resampling.draws, resampling.seed
    answers = predictions.labels, predictions.predicted
    replicates = bootstrap(*answers, num_classes=size, subjects=subjects, draws=draws, seed=seed)
    over_seeds = {name: mean_interval([getattr(seed, name) for seed in seeds.values()]) for name in METRICS}
    faces, columns = len(predictions.labels), zip(METRICS, replicates.metrics.T, strict=True)
    over_samples = {
        name: percentile_interval(column, estimate=over_seeds[name].mean, count=faces) for name, column in columns
    }
    return Evaluation(predictions, seeds, over_seeds, over_samples, replicates)


def summarise(predictions: Predictions, resampling: Resampling) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    result = evaluate(predictions, resampling)
    first, number = result.first, {name: k for k, name in enumerate(predictions.classes)}
    return {
        **{name: interval.mean for name, interval in result.over_seeds.items()},
        "samples": first.num_samples,
        "support": first.supports,
        "absent_classes": ", ".join(first.absent),
        "bootstrap_units": "subjects" if resampling.by_subject and predictions.clusters else "faces within classes",
        "over_seeds": {name: _bounds(interval) for name, interval in result.over_seeds.items() if _bounds(interval)},
        "over_samples": {name: _bounds(interval) for name, interval in result.over_samples.items()},
        "per_class": {
            name: {"accuracy": accuracy, **_bounds(result.share(number[name], number[name]))}
            for name, accuracy in result.class_accuracies.items()
        },
        "per_seed": {str(key): {name: getattr(seed, name) for name in METRICS} for key, seed in result.seeds.items()},
    }


def _bounds(interval: Interval) -> dict[str, float]:
    bounds = {"low": interval.low, "high": interval.high}
    return {key: value for key, value in bounds.items() if value is not None}
