"""Estimate the precision of a mined set, with an interval, from the scores of held-out anchor faces.

Held-out faces are neither trained on nor in the centroids. For a margin m and a predicted class k, the precision p_k(m)
is the share of right ones among the held-out faces that were predicted k with a margin of at least m; its interval is
Wilson's (Journal of the American Statistical Association 22, 1927). The mined set's precision is the mean of p_k
weighted by the *mined* counts, so an anchor with other shares of predicted classes does not bias it; its interval
combines the classes' own (MOVER: Zou & Donner, Statistics in Medicine 27, 2008, eq. 8). What it cannot see: a pool that
is wilder than the anchor within a predicted class. `class_prior: pool` corrects for other shares of *true* classes (see
`class_weights`), `estimator: isotonic` for other margins (see `isotonic_share`).

Beyond the margin that `support` held-out faces of a class still reach, their precision is carried on instead of a share
of few: precision rises with the margin, so this errs low. A class that is never predicted on the held-out faces has no
estimate: it is left out of the mean, and a wanted precision selects nothing of it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num
from pydantic import Field
from scipy.optimize import isotonic_regression
from scipy.special import ndtri

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Settings

ITERATIONS = 10_000
SMALLEST = 1e-6  # keeps a class that the pool seems to lack from dividing by zero

PerClass = Float64[np.ndarray, "t c"]  # for each of `t` margins and `c` classes
Shares = Float64[np.ndarray, " t"]
Labels = Int64[np.ndarray, " n"]
Margins = Float32[np.ndarray, " n"]


class CalibrationSettings(Settings):
    """How the precision of the mined set is estimated."""

    estimator: Literal["tail", "isotonic"] = "tail"  # isotonic: a precision that cannot fall as the margin rises
    class_prior: Literal["anchor", "pool"] = "anchor"  # pool: true classes weighed by their shares in the pool
    support: Annotated[int, Field(ge=1)] = 20  # held-out faces below which a class's precision is carried on
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the intervals


class OutOfReachError(DataError):
    """No margin gives the wanted precision."""


@dataclass(frozen=True)
class Predictions:
    """Scored faces: their nearest class, their margin, and their true label where it is known."""

    nearest: Labels
    margin: Margins
    label: Labels | None = None


@dataclass(frozen=True)
class Estimate:
    """Precisions of `t` margins for `c` classes, NaN without evidence; `heldout` counts the faces behind each."""

    precision: PerClass
    low: PerClass
    high: PerClass
    heldout: Int64[np.ndarray, "t c"]

    def combined(self, counts: Num[np.ndarray, "t c"]) -> tuple[Shares, Shares, Shares]:
        """Returns precision, low and high of sets with these counts per class: a weighted mean, its interval by MOVER.

        Classes without an estimate are left out; NaN where no class has one.
        """
        unknown = np.isnan(self.precision)
        known = np.where(unknown, 0.0, counts.astype(np.float64))
        total = known.sum(axis=1, keepdims=True)
        parts = np.divide(known, total, out=np.full(known.shape, np.nan), where=total > 0)
        share, low, high = (np.where(unknown, 0.0, bound) for bound in (self.precision, self.low, self.high))
        mean = (parts * share).sum(axis=1)
        below = np.sqrt((parts**2 * (share - low) ** 2).sum(axis=1))
        above = np.sqrt((parts**2 * (high - share) ** 2).sum(axis=1))
        return mean, np.clip(mean - below, 0, 1), np.clip(mean + above, 0, 1)


@dataclass(frozen=True)
class Calibration:
    """Held-out faces and the pool's margins by predicted class, one array a class, ready to answer for any margin."""

    correct: tuple[Bool[np.ndarray, " _"], ...]  # by falling margin
    margin: tuple[Float64[np.ndarray, " _"], ...]
    weight: tuple[Float64[np.ndarray, " _"], ...]
    pool: tuple[Float32[np.ndarray, " _"], ...]  # by rising margin
    settings: CalibrationSettings

    @property
    def covered(self) -> Bool[np.ndarray, " c"]:
        """Which classes have any held-out face."""
        return np.array([len(margin) > 0 for margin in self.margin])

    def count_passing(self, thresholds: PerClass) -> Int64[np.ndarray, "t c"]:
        """Counts the pool faces of each class that pass, before any cap."""
        columns = [len(pool) - np.searchsorted(pool, thresholds[:, k]) for k, pool in enumerate(self.pool)]
        return np.stack(columns, axis=1)

    def estimate(self, thresholds: PerClass) -> Estimate:
        """Estimates the precision of each class at each of `t` margins."""
        columns = []
        for k, (margin, weight, correct) in enumerate(zip(self.margin, self.weight, self.correct, strict=True)):
            if len(margin) == 0:
                columns.append([*[np.full(len(thresholds), np.nan)] * 3, np.zeros(len(thresholds), np.int64)])
                continue
            passing = np.searchsorted(-margin, -thresholds[:, k], side="right")
            last = margin[min(self.settings.support, len(margin)) - 1]
            least = np.searchsorted(-margin, -last, side="right")  # faces of equal margin count together
            used = np.maximum(passing, least)
            total, right = np.cumsum(weight)[used - 1], np.cumsum(weight * correct)[used - 1]
            # Kish's effective number: unequal weights carry less evidence than their count says.
            effective = total**2 / np.cumsum(weight**2)[used - 1]
            share = np.clip(right / total, 0, 1)
            if self.settings.estimator == "isotonic":
                share = isotonic_share(correct, margin, weight, pool=self.pool[k], thresholds=thresholds[:, k])
            columns.append([share, *wilson(share, effective, level=self.settings.level), used])
        return Estimate(*(np.stack(part, axis=1) for part in zip(*columns, strict=True)))

    def margin_for_precision(
        self, wanted: float, *, group: Int64[np.ndarray, " g"], present: Float32[np.ndarray, " n"], bound: str
    ) -> float:
        """Finds the smallest margin at which the estimate (or its lower bound) for the classes of `group` is `wanted`.

        Looked for among the margins of held-out faces, where the estimate changes, and the smallest one of the pool.
        """
        positive = present[present > 0].astype(np.float64)
        if len(positive) == 0:
            return np.inf
        least, most = positive.min(), positive.max()
        heldout = np.concatenate([self.margin[k] for k in group])
        offers = np.unique(np.append(heldout[(heldout > least) & (heldout <= most)], least))
        thresholds = np.full((len(offers), len(self.margin)), np.inf)
        thresholds[:, group] = offers[:, None]
        counts = self.count_passing(thresholds)
        precision, low, _ = self.estimate(thresholds).combined(counts)
        reached = precision if bound == "estimate" else low
        good = np.flatnonzero(reached >= wanted)
        if len(good) == 0:
            best = int(np.nanargmax(reached))
            raise OutOfReachError(
                f"no margin reaches the wanted precision of {wanted:g}: the best {bound} on held-out faces is "
                f"{reached[best]:.4f} at margin {offers[best]:.4f}, which keeps {int(counts[best].sum())}; "
                "lower mine.value or hold out more anchor faces"
            )
        return float(offers[good[0]])

    def sweep(self, *, points: int, used: Float64[np.ndarray, " u"]) -> dict[str, np.ndarray]:
        """Estimates at `points` margins, evenly from 0 to the largest of the pool, and at those in use, before caps.

        Returns the margins [t], faces that pass and held-out faces by class [t c], precision, low and high by class
        [t c 3] and for all classes together [t 3]: what `artifacts.mined.sweep_table` takes.
        """
        top = max((float(pool[-1]) for pool in self.pool if len(pool)), default=0.0)
        grid = np.unique(np.concatenate([np.linspace(0.0, top, points), used[np.isfinite(used)]]))
        thresholds = np.repeat(grid[:, None], len(self.pool), axis=1)
        counts, estimate = self.count_passing(thresholds), self.estimate(thresholds)
        interval = np.stack([estimate.precision, estimate.low, estimate.high], axis=2)
        overall = np.stack(estimate.combined(counts), axis=1)
        return {"margin": grid, "kept": counts, "heldout": estimate.heldout, "interval": interval, "overall": overall}


def calibrate(
    heldout: Predictions, pool: Predictions, settings: CalibrationSettings, *, num_classes: int
) -> Calibration:
    """Sorts held-out faces, whose labels are known, and pool faces by predicted class."""
    assert heldout.label is not None
    order = np.argsort(-heldout.margin, kind="stable")
    label, nearest, margin = heldout.label[order], heldout.nearest[order], heldout.margin[order].astype(np.float64)
    weights = np.ones(num_classes)
    if settings.class_prior == "pool":
        weights = class_weights(label, nearest, pool.nearest, num_classes=num_classes)
    groups = [nearest == k for k in range(num_classes)]
    return Calibration(
        correct=tuple(label[group] == k for k, group in enumerate(groups)),
        margin=tuple(margin[group] for group in groups),
        weight=tuple(weights[label[group]] for group in groups),
        pool=tuple(np.sort(pool.margin[pool.nearest == k]) for k in range(num_classes)),
        settings=settings,
    )


def wilson(
    share: Float64[np.ndarray, "*t"], number: Num[np.ndarray, "*t"], *, level: float
) -> tuple[Float64[np.ndarray, "*t"], Float64[np.ndarray, "*t"]]:
    """Computes Wilson's interval of a share of `number` trials (any effective number), two-sided at `level`."""
    z = float(ndtri(0.5 + level / 2))
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def isotonic_share(
    correct: Bool[np.ndarray, " h"],
    margin: Float64[np.ndarray, " h"],
    weight: Float64[np.ndarray, " h"],
    *,
    pool: Float32[np.ndarray, " n"],
    thresholds: Float64[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    """Computes the expected precision of the pool's faces at or above each threshold; `pool` rises.

    Isotonic regression (pool adjacent violators) gives each margin a chance of being right; the precision is the mean
    of those chances over the *pool's* passing faces, so a pool whose passing faces lie lower in the margins than the
    anchor's is not flattered. Where no pool face passes, the chance at the threshold itself stands in.
    """
    steps, place = np.unique(margin, return_inverse=True)
    total = np.bincount(place, weights=weight)
    right = np.bincount(place, weights=weight * correct) / total
    chance = np.asarray(isotonic_regression(right, weights=total, increasing=True).x)

    def chance_at(margins: Float[np.ndarray, " _"]) -> Float64[np.ndarray, " _"]:
        # A face has the chance of the last step at or below its margin; below the first step, that of the first.
        return chance[np.maximum(np.searchsorted(steps, margins, side="right") - 1, 0)]

    expected = np.append(0.0, np.cumsum(chance_at(pool)))
    below = np.searchsorted(pool, thresholds)
    passing = len(pool) - below
    mean = (expected[-1] - expected[below]) / np.maximum(passing, 1)
    return np.where(passing > 0, mean, chance_at(thresholds))


def class_weights(
    label: Int64[np.ndarray, " h"], nearest: Int64[np.ndarray, " h"], pool_nearest: Labels, *, num_classes: int
) -> Float64[np.ndarray, " c"]:
    """Divides pool share by held-out share for every true class; 1 for a class without held-out faces.

    The share of right ones among the faces predicted k depends on how frequent each true class is. If a class looks
    alike in anchor and pool (label shift), the pool's shares q follow from its predictions: the shares of predictions
    are C q, where C[j, y] is how often a held-out face of class y is predicted j. A held-out face of class y then
    weighs q[y] / p[y], with p the held-out shares. The intervals take q as known.
    Those shares are the likeliest by expectation maximisation (Saerens, Latinne & Decaestecker, Neural Computation 14,
    2002, on hard predictions); predictions that no class explains are left out.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (nearest, label), 1)
    support = counts.sum(axis=0)
    known = support > 0
    weights = np.ones(num_classes)
    if not len(pool_nearest) or not known.any():
        return weights
    confusion = counts[:, known] / support[known]  # columns sum to 1
    explained = confusion.sum(axis=1) > 0
    confusion, predicted = confusion[explained], np.bincount(pool_nearest, minlength=num_classes)[explained]
    shares = np.full(confusion.shape[1], 1.0 / confusion.shape[1])
    predicted = predicted / max(predicted.sum(), 1)
    for _ in range(ITERATIONS if predicted.any() else 0):
        expected = confusion @ shares
        ratio = np.divide(predicted, expected, out=np.zeros_like(predicted), where=expected > 0)
        update = shares * (confusion.T @ ratio)
        update /= update.sum()
        if np.abs(update - shares).max() < 1e-12:
            break
        shares = update
    weights[known] = np.maximum(shares, SMALLEST) / (support[known] / support.sum())
    return weights
