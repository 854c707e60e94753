"""Compute means with 95 % intervals, and paired differences, from several seeds' predictions on one test set.

Two sources of doubt are kept apart, since they answer different questions:

- *Seeds* (would another training run say the same?): Student's t interval of the mean over seeds, and of the mean of
  the per-seed differences where two recipes are compared. One seed has no interval.
- *Test samples* (would other test faces say the same?): the percentile bootstrap (Efron and Tibshirani, An Introduction
  to the Bootstrap, 1993, chapter 13), the trained models held fixed, the figure being the mean over the seeds.
  Where the subjects of the faces are known, whole subjects are drawn with replacement, because the faces of a person
  are not independent; else faces are drawn within each true class (stratified), so that a rare class is never lost.
  A replicate in which a class has no face leaves that class out of its mean, as `metrics` does.
  Comparisons are paired: both recipes meet the same replicates.

`summarise` nests the figures as `metrics.json` holds them, so that `dvc metrics show` reads them: the four figures as
means over the seeds on the top level, then `over_seeds` (with two seeds or more), `over_samples` (the bootstrap's),
every class and every seed. All are fractions of 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.special import stdtrit

from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings
from fer_pipeline.evaluation.metrics import METRICS, Metrics, all_metrics, measure, row_shares
from fer_pipeline.evaluation.predictions import Predictions

LEVEL = 0.95
CHUNK_VALUES = 4_000_000  # bounds the memory of one block of replicates


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; `low` and `high` are None where one value alone leaves no spread to see."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        """Half the interval's length, for `mean ± half`."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def direction(self) -> Literal["above", "below", "unclear"]:
        """Whether the whole interval lies on one side of zero."""
        if self.low is not None and self.low > 0:
            return "above"
        return "below" if self.high is not None and self.high < 0 else "unclear"


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's t interval; n - 1 degrees of freedom."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, None, None, len(array))
    half = float(stdtrit(len(array) - 1, (1 + LEVEL) / 2) * array.std(ddof=1) / np.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half, len(array))


def replicate_weights(
    labels: Int[np.ndarray, " n"], *, subjects: Sequence[str] | None, draws: int, seed: int
) -> tuple[Int[np.ndarray, "b u"], Int[np.ndarray, " n"]]:
    """Draw how often each unit is in each replicate, and return that with the unit of each sample.

    A unit is a subject where subjects are given (a sample without one, "", is a unit of its own), else a sample.
    """
    generator = np.random.default_rng(derive(seed, "bootstrap"))
    if subjects is not None:
        names = [subject or f"\0{index}" for index, subject in enumerate(subjects)]
        _, unit = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
        count = int(unit.max()) + 1
        return generator.multinomial(count, np.full(count, 1 / count), size=draws), unit.astype(np.int64)
    weights = np.zeros((draws, len(labels)), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        weights[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return weights, np.arange(len(labels))


@dataclass(frozen=True)
class Replicates:
    """The bootstrap's replicates, means over the seeds: the four figures, and the confusion with rows that sum to 1."""

    metrics: Float[np.ndarray, "b 4"]
    confusion: Float[np.ndarray, "b c c"]  # rows of a class that a replicate lacks are NaN


def bootstrap(
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, "s n"],
    *,
    num_classes: int,
    subjects: Sequence[str] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Replicates:
    """Resample the test set. Equal labels, subjects, draws and seed give equal weights, whatever was predicted."""
    weights, unit = replicate_weights(labels, subjects=subjects, draws=draws, seed=seed)
    num_seeds, cells = len(predicted), num_classes * num_classes
    per_unit = np.zeros((weights.shape[1], num_seeds * cells), dtype=np.float64)
    for index, row in enumerate(predicted):
        np.add.at(per_unit, (unit, index * cells + labels * num_classes + row), 1.0)
    step = max(1, CHUNK_VALUES // max(weights.shape[1], num_seeds * cells))
    metrics, rows = [], []
    for start in range(0, draws, step):
        counts = weights[start : start + step].astype(np.float64) @ per_unit
        confusion = counts.reshape(-1, num_seeds, num_classes, num_classes)
        metrics.append(all_metrics(confusion).mean(1))
        rows.append(row_shares(confusion).mean(1))
    return Replicates(np.concatenate(metrics), np.concatenate(rows))


def percentile_interval(replicates: Float[np.ndarray, " b"], *, estimate: float, count: int) -> Interval:
    """Return the middle 95 % of the replicates around an estimate made on the real sample."""
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Interval(estimate, None, None, count)
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high), count)


def share_interval(hits: int, count: int) -> Interval:
    """Return a share of independent trials with Wilson's score interval (Wilson, 1927); no interval for no trial."""
    if count == 0:
        return Interval(float("nan"), None, None, 0)
    from scipy import stats  # takes a second to import, and evaluate has no need of it

    interval = stats.binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return Interval(hits / count, float(interval.low), float(interval.high), count)


class Resampling(Settings):
    """How the test faces are resampled."""

    bootstrap: Annotated[int, Field(ge=100)] = 2000  # replicates of the test sets
    bootstrap_seed: int = 0
    by_subject: bool = True  # draw persons where they are known; else faces within each class


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
    replicates = bootstrap(
        predictions.labels,
        predictions.predicted,
        num_classes=len(predictions.classes),
        subjects=subjects,
        draws=resampling.bootstrap,
        seed=resampling.bootstrap_seed,
    )
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
