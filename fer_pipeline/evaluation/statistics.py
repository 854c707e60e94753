"""Compute means with 95 % intervals, and say which differences between recipes may be claimed.

Two sources of doubt stand beside the figures of a single recipe:

- *Seeds* (would another training run say the same?): Student's t interval of the mean over seeds.
- *Test samples* (would other test faces say the same?): the percentile bootstrap (Efron and Tibshirani, An Introduction
  to the Bootstrap, 1993, chapter 13), the trained models held fixed, the figure being the mean over the seeds.
  Where the subjects of the faces are known, whole subjects are drawn with replacement, because the faces of a person
  are not independent; else faces are drawn within each true class (stratified), so that a rare class is never lost.
  A replicate in which a class has no face leaves that class out of its mean, as `metrics` does.

A *difference* varies with both, so that its interval joins them (`contrast`). Its parts are the variance over the seeds
of the seed-by-seed differences, with n - 1 degrees of freedom, and the variance of the paired bootstrap (both recipes
meet the same replicates), corrected for its bias, with as many degrees of freedom as the persons that show each class
give. The half-width at level 1 - a is sqrt(sum of t²(1 - a/2; its degrees of freedom) · variance over the parts).
Source: Banerjee, Approximate confidence interval for linear functions of means of k populations when the population
variances are not equal, Sankhya 22 (1960), 357-358. It covers at least 1 - a at every ratio of the parts, because
P(chi² with one degree of freedom <= x) is concave in x; Satterthwaite's approximation does not where three seeds happen
to agree. What varies with seed and person at once is in both parts, which errs to the same side.

`decide` corrects for the number of comparisons (Holm, A simple sequentially rejective multiple test procedure,
Scandinavian Journal of Statistics 6, 1979, 65-70): the chance that any of them is claimed though no recipe differs is
at most 5 %.

`summarise` nests the figures as `metrics.json` holds them, so that `dvc metrics show` reads them: the four figures as
means over the seeds on the top level, then `over_seeds` (with two seeds or more), `over_samples` (the bootstrap's),
every class and every seed. All are fractions of 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field
from scipy.special import ndtr, stdtrit

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


class Part(NamedTuple):
    """One part of the variance of an estimate, with the degrees of freedom of its own estimate."""

    variance: float
    freedom: float


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
    """The bootstrap's replicates, and the number of units (persons, or faces) in all and with each class present."""

    metrics: Float[np.ndarray, "b s 4"]  # the figures of every seed
    confusion: Float[np.ndarray, "b c c"]  # rows sum to 1, mean over the seeds; NaN for a class that a replicate lacks
    num_units: int
    units_by_class: Int[np.ndarray, " k"]  # of the classes present

    def variance(self, differences: Float[np.ndarray, " b"], metric: str) -> "Part":
        """Return the variance between test samples of what has these replicates.

        The plug-in variance is too small by (m - 1) / m where m units show a class; a class shown by one unit alone
        leaves no spread to see, and the part is not finite.
        """
        units = np.array([self.num_units]) if metric == "accuracy" else self.units_by_class
        if units.min() < 2:
            return Part(math.inf, 1)
        shares, draws = 1 / units, np.isfinite(differences).sum()
        unbiased = np.nanvar(differences, ddof=1) * (1 / (units - 1)).sum() / shares.sum()
        freedom = min(self.num_units - 1, shares.sum() ** 2 / (shares**2 / (units - 1)).sum())
        return Part(float(unbiased), float(1 / (1 / freedom + 1 / (draws - 1))))  # the draws are a sample as well


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
        metrics.append(all_metrics(confusion))
        rows.append(row_shares(confusion).mean(1))
    classes, pairs = np.unique(labels), np.unique(np.stack([labels, unit]), axis=1)
    by_class = (pairs[0] == classes[:, None]).sum(1)
    return Replicates(np.concatenate(metrics), np.concatenate(rows), weights.shape[1], by_class)


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
    resampling: Resampling

    def by_seed(self, metric: str) -> dict[int, float]:
        """One figure of every seed."""
        return {seed: getattr(figures, metric) for seed, figures in self.seeds.items()}

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


def evaluate(predictions: Predictions, resampling: Resampling, *, target: str) -> Evaluation:
    """Compute the figures of every seed and resample the faces of a target, for every recipe alike."""
    confusions = zip(predictions.seeds, predictions.confusions, strict=True)
    seeds = {seed: measure(confusion, classes=predictions.classes) for seed, confusion in confusions}
    subjects = predictions.clusters if resampling.by_subject else None
    replicates = bootstrap(
        predictions.labels,
        predictions.predicted,
        num_classes=len(predictions.classes),
        subjects=subjects,
        draws=resampling.bootstrap,
        seed=derive(resampling.bootstrap_seed, target),
    )
    over_seeds = {name: mean_interval([getattr(seed, name) for seed in seeds.values()]) for name in METRICS}
    faces, columns = len(predictions.labels), zip(METRICS, replicates.metrics.mean(1).T, strict=True)
    over_samples = {
        name: percentile_interval(column, estimate=over_seeds[name].mean, count=faces) for name, column in columns
    }
    return Evaluation(predictions, seeds, over_seeds, over_samples, replicates, resampling)


POINT = 0.01  # the difference that `seeds_needed` asks after
POWER = 0.8
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Contrast:
    """The mean difference of two recipes with all that it varies with; `unknown` says what leaves no spread to see."""

    mean: float
    num_seeds: int  # of trainings, or of pairs of them; 0 where neither was trained here
    seeds: tuple[Part, ...]  # between trainings
    samples: tuple[Part, ...]  # between the faces of each target
    samples_alone: float  # the variance that is left with endless seeds
    unknown: str = ""

    def half_width(self, level: float) -> float:
        """Half the length of the interval at a level; see the module."""
        return math.sqrt(sum(stdtrit(one.freedom, (1 + level) / 2) ** 2 * one.variance for one in self._parts))

    def interval(self, level: float = LEVEL) -> Interval:
        """The interval over seeds and persons, no ends where it cannot be told."""
        if self.unknown:
            return Interval(self.mean, None, None, self.num_seeds)
        half = self.half_width(level)
        return Interval(self.mean, self.mean - half, self.mean + half, self.num_seeds)

    @property
    def p_value(self) -> float:
        """The level of doubt at which the interval just leaves out zero; 1 where it cannot be told."""
        if self.unknown or self.mean == 0:
            return 1.0
        low, high = -30.0, 0.0  # exponents of ten
        for _ in range(60):  # halvings, to the last digit
            middle = (low + high) / 2
            tails = [stdtrit(one.freedom, 10**middle / 2) ** 2 * one.variance for one in self._parts]
            low, high = (low, middle) if abs(self.mean) > math.sqrt(sum(tails)) else (middle, high)
        return float(10**high)

    def seeds_needed(self, level: float) -> int | None:
        """The seeds with which a difference of a point would be found at a level with a power of 80 %.

        A rough figure, since it rests on the variance between few trainings. None where no number of seeds would do.
        """
        number = np.arange(2, MOST_SEEDS + 1) if self.seeds else np.array([1])
        between = sum(one.variance for one in self.seeds) * self.num_seeds / number
        whole, tail = sum(one.variance for one in self.samples), (1 + level) / 2
        squares = stdtrit(np.maximum(number - 1, 1), tail) ** 2 * between
        for one in self.samples:
            squares = squares + stdtrit(one.freedom, tail) ** 2 * one.variance * self.samples_alone / (whole or 1.0)
        spread = np.sqrt(between + self.samples_alone)
        power = ndtr((POINT - np.sqrt(squares)) / np.maximum(spread, 1e-12))
        return int(number[power >= POWER][0]) if (power >= POWER).any() else None

    @property
    def _parts(self) -> tuple[Part, ...]:
        return (*self.seeds, *self.samples)


def contrast(groups: Sequence[tuple[Evaluation, ...]], metric: str) -> Contrast:
    """Compare two recipes on one target, or the plain mean over several; a group is what was measured on a target.

    Seeds that both have are paired, and where there are such the others are left out. A network that is none of our
    trainings has no seeds: it meets every seed of the other. Of four recipes the difference of the first two is
    compared with that of the last two: (first - second) - (third - fourth).
    """
    sides = [_figures(side, metric) for side in zip(*groups, strict=True)]
    assert all(sides), "no seed was measured on all targets"
    signs = np.array((1.0, -1.0, -1.0, 1.0)[: len(sides)])
    common = [seed for seed in sides[0] if all(seed in side for side in sides)]
    sides = [{seed: side[seed] for seed in common or side} for side in sides]
    values = [np.array(list(side.values())) for side in sides]
    varying = [signs @ np.stack(values)] if common else values
    trained = [one for one, side in zip(varying, sides, strict=False) if None not in side]
    seeds = [Part(float(one.var(ddof=1)) / len(one), len(one) - 1) for one in trained if len(one) > 1]
    samples, alone, lengths = [], 0.0, {len(side) for side in sides}
    for group in groups:
        drawn = [_replicates(one, side, metric) for one, side in zip(group, sides, strict=True)]
        variance, means = group[0].replicates.variance, np.stack([rows.mean(1) for rows in drawn])
        part = variance(signs @ means, metric)
        samples.append(Part(part.variance / len(groups) ** 2, part.freedom))
        number, both = max(lengths), 0.0
        if number > 1 and lengths <= {1, number} and math.isfinite(part.variance):
            rows = np.tensordot(signs, np.stack(np.broadcast_arrays(*drawn)), axes=1).T
            singles = [variance(row, metric).variance for row in rows]
            both = (float(np.mean(singles)) - part.variance) / (number - 1)  # what varies with seed and person at once
        alone += max(0.0, part.variance - max(0.0, both)) / len(groups) ** 2
    unknown = "one seed" if len(seeds) < len(trained) else ""
    if not all(math.isfinite(part.variance) for part in samples):
        unknown = "a class that one person alone shows"
    mean, number = float(signs @ [value.mean() for value in values]), min(map(len, trained), default=0)
    return Contrast(mean, number, tuple(seeds), tuple(samples), alone, unknown)


def _figures(results: Sequence[Evaluation], metric: str) -> dict[int | None, float]:
    """One figure of every seed that was measured on all targets, mean over them; under None where it is of no seed."""
    rows = [result.by_seed(metric) for result in results]
    if not all(result.predictions.trained for result in results):
        return {None: float(np.mean([value for row in rows for value in row.values()]))}
    shared = [seed for seed in rows[0] if all(seed in row for row in rows)]
    return {seed: float(np.mean([row[seed] for row in rows])) for seed in shared}


def _replicates(result: Evaluation, chosen: dict[int | None, float], metric: str) -> Float[np.ndarray, "b s"]:
    seeds = list(result.seeds)
    places = [seeds.index(seed) for seed in chosen if seed is not None] or list(range(len(seeds)))
    return result.replicates.metrics[:, places, METRICS.index(metric)]


class Decision(NamedTuple):
    """What may be said of one comparison among several: nothing unless `p_value` is below 5 %."""

    interval: Interval  # at the level of Holm's procedure; leaves out zero where the difference is claimed
    p_value: float  # corrected
    seeds_needed: int | None  # for a difference of a point, at the level of a first comparison

    @property
    def claim(self) -> Literal["above", "below", "unclear"]:
        """The side of zero that the difference is claimed to be on."""
        return self.interval.direction


def decide(contrasts: Sequence[Contrast]) -> list[Decision]:
    """Correct comparisons for their number by Holm's procedure; one that cannot be told counts as well."""
    doubt, decisions, corrected, divisor = 1 - LEVEL, {}, 0.0, len(contrasts)
    values = [one.p_value for one in contrasts]
    for rank, place in enumerate(sorted(range(len(contrasts)), key=values.__getitem__)):
        if corrected < doubt:
            divisor = len(contrasts) - rank  # stays, once one is not claimed: none after it is
        corrected = min(1.0, max(corrected, (len(contrasts) - rank) * values[place]))
        one, first = contrasts[place], 1 - doubt / len(contrasts)
        needed = None if one.unknown else one.seeds_needed(first)
        decisions[place] = Decision(one.interval(1 - doubt / divisor), corrected, needed)
    return [decisions[place] for place in range(len(contrasts))]


def summarise(predictions: Predictions, resampling: Resampling, *, target: str) -> dict[str, Any]:
    """Return the content of `metrics.json`; `resampling` has the settings, by which the report resamples as well."""
    result = evaluate(predictions, resampling, target=target)
    first, number = result.first, {name: k for k, name in enumerate(predictions.classes)}
    return {
        **{name: interval.mean for name, interval in result.over_seeds.items()},
        "samples": first.num_samples,
        "support": first.supports,
        "absent_classes": ", ".join(first.absent),
        "resampling": {name: getattr(resampling, name) for name in Resampling.model_fields},
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
