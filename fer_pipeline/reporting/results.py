"""Compute every recipe's results on every target from its predictions, and compare recipes with each other.

All figures come from `predictions.parquet`, so that the page's numbers rest on one file, and are resampled as
`evaluate` did. A difference is paired seed by seed and test face by test face (both recipes meet the same bootstrap
replicates); its interval is over both. `ALL` stands for the plain mean over the targets, each of equal weight.

One difference of each pair decides, and only it may be claimed: that in `METRIC`, on the mean over the targets where
there are several. All that decide are corrected for their number together. The others are details without a claim, and
so are all of a bound: a recipe that learns from what no one knows of real data, such as the truth of a drawn pool.
"""

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_pipeline.artifacts.metrics import PREDICTIONS, read_predictions, read_resampling
from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation import statistics
from fer_pipeline.evaluation.metrics import METRICS
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import (
    Contrast,
    Decision,
    Evaluation,
    Interval,
    Part,
    Resampling,
    contrast,
    decide,
)
from fer_pipeline.reporting.charts import BLUE, VERMILION
from fer_pipeline.reporting.formatting import percent, span

ALL = "all targets"
METRIC = "mean_class_accuracy"  # decides
DEVIATION = "class_accuracy_sd"
COMPARED = (METRIC, "accuracy", DEVIATION)
STRONGEST = 0.72  # of the full colour, so that dark text keeps a contrast of 4.5 on every shade


@dataclass(frozen=True)
class Result(Evaluation):
    """The figures of one recipe on one target."""

    recipe: str
    target: str

    def over_both(self, metric: str) -> Interval:
        """A figure with its interval over seeds and persons together, joined as that of a difference is.

        The test faces alone make a standard deviation of classes larger, for all recipes alike.
        """
        values = np.array([*self.by_seed(metric).values()])
        drawn = self.replicates.metrics[:, :, METRICS.index(metric)].mean(1)
        persons, trained = self.replicates.variance(drawn, metric), self.predictions.trained
        seeds = [Part(values.var(ddof=1) / len(values), len(values) - 1)] if trained and len(values) > 1 else []
        unknown = (trained and not seeds) or not np.isfinite(persons.variance)
        both = Contrast(float(values.mean()), len(values), (*seeds,), (persons,), 0.0, "no spread to see" * unknown)
        interval = both.interval()
        return interval if interval.low is None else replace(interval, low=max(0.0, interval.low))


Results = dict[tuple[str, str], Result]  # by recipe and target
Pair = tuple[str, str]  # of recipes; stands for the first minus the second


class Difference(NamedTuple):
    """One recipe, or difference of two, minus another on one target, for one figure; `decision` where it decides."""

    recipe: str
    against: str
    target: str
    metric: str
    contrast: Contrast
    decision: Decision | None = None

    @property
    def interval(self) -> Interval:
        """The interval over seeds and persons: corrected where it decides, else of 95 %."""
        return self.decision.interval if self.decision else self.contrast.interval()


Comparisons = dict[Pair, list[tuple[Difference, ...]]]  # in `COMPARED`, by target


Cell = tuple[str, str, str]  # of the confusion table: text, colour of the background, title


def load_results(metrics: Path, recipes: Sequence[str], targets: Sequence[str]) -> Results:
    """Read and evaluate all predictions there are, in the order of the recipes."""
    results = {
        (recipe, target): compute_result(recipe, target, read_predictions(path), read_resampling(path.parent))
        for recipe in recipes
        for target in targets
        if (path := metrics / recipe / target / PREDICTIONS).exists()
    }
    if not results:
        raise DataError(f"no results in {metrics} for the recipes {', '.join(recipes)}; run: dvc repro evaluate")
    if len({tuple(vars(result.resampling).items()) for result in results.values()}) > 1:
        raise DataError(f"the results in {metrics} were resampled in different ways; run: dvc repro evaluate")
    return results


def compute_result(recipe: str, target: str, predictions: Predictions, resampling: Resampling) -> Result:
    """Compute the figures of one recipe on one target; all recipes meet the same replicates of a target."""
    own = statistics.evaluate(predictions, resampling, target=target)
    return Result(**vars(own), recipe=recipe, target=target)


def list_pairs(
    recipes: Sequence[str], *, baseline: str, controls: Mapping[str, str], more: Sequence[Pair] = ()
) -> list[Pair]:
    """List which recipes are compared: each with the baseline, those that have a control with it, `more` of them."""
    pairs = [(name, baseline) for name in recipes if name != baseline] if baseline in recipes else []
    pairs += [(name, controls[name]) for name in recipes if name in controls]
    return [*dict.fromkeys([*pairs, *more])]


def compare_recipes(
    results: Results,
    pairs: Sequence[Pair | tuple[Pair, Pair]],
    *,
    targets: Sequence[str],
    bounds: Collection[str] = (),
) -> Comparisons:
    """Compare pairs of recipes, or the differences of two pairs, and decide which differences are claimed.

    None is of those with one of `bounds`. What has no common target is left out.
    """
    comparisons: Comparisons = {}
    deciding = []
    for pair in dict.fromkeys(pairs):
        means, *others = (compute_differences(results, *pair, targets=targets, metric=m) for m in COMPARED)
        if means:
            rows = comparisons[means[0].recipe, means[0].against] = list(zip(means, *others, strict=True))
            if not {*_names(*pair)} & set(bounds):
                deciding.append(rows)
    decisions = decide([rows[-1][0].contrast for rows in deciding])  # of the mean over several targets
    for rows, decision in zip(deciding, decisions, strict=True):
        rows[-1] = (rows[-1][0]._replace(decision=decision), *rows[-1][1:])
    return comparisons


def compute_differences(
    results: Results, recipe: str | Pair, against: str | Pair, *, targets: Sequence[str], metric: str
) -> list[Difference]:
    """Compare two recipes, or the differences of two pairs, on every target that all of them were measured on, and on
    the mean over these if several.
    """
    names = _names(recipe, against)
    groups = {
        target: [tuple(results[name, target] for name in names)]
        for target in targets
        if all((name, target) in results for name in names)
    }
    for target, [group] in groups.items():
        faces = group[0].predictions.face_id.tolist()
        if any(result.predictions.face_id.tolist() != faces for result in group[1:]):
            several = " and ".join(dict.fromkeys(names))
            raise DataError(f"{several} were measured on different faces of {target}; run: dvc repro evaluate")
    measured = [group for [group] in groups.values()]  # on each target
    if not all(set.intersection(*(set(result.seeds) for result in side)) for side in zip(*measured, strict=True)):
        return []  # no seed was measured on all targets
    if len(groups) > 1:
        groups[ALL] = measured
    first, second = (
        side if isinstance(side, str) else f"({side[0]} \N{MINUS SIGN} {side[1]})" for side in (recipe, against)
    )
    return [Difference(first, second, name, metric, contrast(group, metric)) for name, group in groups.items()]


def _names(recipe: str | Pair, against: str | Pair) -> list[str]:
    return [name for side in (recipe, against) for name in ((side,) if isinstance(side, str) else side)]


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
