"""Scores of held-out anchor faces in, the precision to be expected of a mined set out, with an interval.

Held-out faces are neither trained on nor in the centroids. For a margin m and a predicted class k, the precision p_k(m)
is the share of right ones among the held-out faces that were predicted k with a margin of at least m; its interval is
Wilson's. The mined set's precision is the mean of p_k weighted by the *mined* counts, so an anchor with other shares of
predicted classes does not bias it; its interval combines the classes' own (MOVER: Zou & Donner, Statistics in Medicine
27, 2008, eq. 8). What it cannot see: a pool that is wilder than the anchor within a predicted class. `class_prior:
pool` (see `priors`) corrects for other shares of *true* classes, `estimator: isotonic` (see `smoothing`) for other
margins.

Beyond the margin that `support` held-out faces of a class still reach, their precision is carried on instead of a share
of few: precision rises with the margin, so this errs low. A class that is never predicted on the held-out faces has no
estimate: it is left out of the mean, and a wanted precision keeps nothing of it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from fer_pipeline.core.errors import DataError
from fer_pipeline.mining.intervals import weighted_interval, wilson
from fer_pipeline.mining.smoothing import isotonic_share

Estimator = Literal["tail", "isotonic"]


class OutOfReachError(DataError):
    """No margin gives the wanted precision."""


@dataclass(frozen=True)
class Estimate:
    """Precisions of `t` margins for `c` classes, NaN without evidence; `heldout` counts the faces behind each."""

    precision: Float64[np.ndarray, "t c"]
    low: Float64[np.ndarray, "t c"]
    high: Float64[np.ndarray, "t c"]
    heldout: Int64[np.ndarray, "t c"]

    def combined(self, kept: Int64[np.ndarray, "t c"]) -> tuple[Float64[np.ndarray, " t"], ...]:
        """Precision, low and high of sets with these counts per class; NaN where no kept class has an estimate."""
        return weighted_interval(self.precision, self.low, self.high, weights=kept)


@dataclass(frozen=True)
class Calibration:
    """Held-out faces by predicted class, ready to answer for any margin, and the pool's margins by class."""

    correct: tuple[Bool[np.ndarray, " _"], ...]  # one array a class, by falling margin
    margin: tuple[Float32[np.ndarray, " _"], ...]
    weight: tuple[Float64[np.ndarray, " _"], ...]
    pool: tuple[Float32[np.ndarray, " _"], ...]  # by rising margin
    support: int
    level: float
    estimator: Estimator

    @property
    def covered(self) -> Bool[np.ndarray, " c"]:
        """Which classes have any held-out face."""
        return np.array([len(margin) > 0 for margin in self.margin])

    def kept(self, thresholds: Float64[np.ndarray, "t c"]) -> Int64[np.ndarray, "t c"]:
        """How many pool faces of each class pass, before any cap."""
        columns = [len(pool) - np.searchsorted(pool, thresholds[:, k]) for k, pool in enumerate(self.pool)]
        return np.stack(columns, axis=1).astype(np.int64)

    def estimate(self, thresholds: Float64[np.ndarray, "t c"]) -> Estimate:
        """The precision of each class at each of `t` margins."""
        columns = [self._estimate_class(k, thresholds[:, k]) for k in range(len(self.margin))]
        precision, low, high, heldout = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
        return Estimate(precision, low, high, heldout.astype(np.int64))

    def _estimate_class(self, k: int, thresholds: Float64[np.ndarray, " t"]) -> tuple[np.ndarray, ...]:
        margin, weight = self.margin[k].astype(np.float64), self.weight[k]
        if len(margin) == 0:
            nothing = np.full(len(thresholds), np.nan)
            return nothing, nothing, nothing, np.zeros(len(thresholds), np.int64)
        passing = np.searchsorted(-margin, -thresholds, side="right")
        least = min(self.support, len(margin))
        least = np.searchsorted(-margin, -margin[least - 1], side="right")  # faces of equal margin count together
        used = np.maximum(passing, least)
        total, right = np.cumsum(weight)[used - 1], np.cumsum(weight * self.correct[k])[used - 1]
        # Kish's effective number: unequal weights carry less evidence than their count says.
        effective = total**2 / np.cumsum(weight**2)[used - 1]
        share = np.clip(right / total, 0, 1)
        if self.estimator == "isotonic":
            share = isotonic_share(self.correct[k], margin, weight, pool=self.pool[k], thresholds=thresholds)
        low, high = wilson(share, effective, level=self.level)
        return share, low, high, used

    def margin_for_precision(
        self, wanted: float, *, group: Int64[np.ndarray, " g"], present: Float32[np.ndarray, " n"], bound: str
    ) -> float:
        """The smallest margin at which the estimate (or its lower bound) for the classes of `group` reaches `wanted`.

        Looked for among the margins of held-out faces, where the estimate changes, and the smallest one of the pool.
        """
        positive = present[present > 0]
        if len(positive) == 0:
            return np.inf
        heldout = np.concatenate([self.margin[k] for k in group])
        candidates = np.unique(
            np.append(heldout[(heldout > positive.min()) & (heldout <= positive.max())], positive.min())
        )
        thresholds = np.full((len(candidates), len(self.margin)), np.inf)
        thresholds[:, group] = candidates[:, None]
        kept = self.kept(thresholds)
        precision, low, _ = self.estimate(thresholds).combined(kept)
        reached = precision if bound == "estimate" else low
        good = np.flatnonzero(reached >= wanted)
        if len(good) == 0:
            best = int(np.nanargmax(reached))
            raise OutOfReachError(
                f"no margin reaches the wanted precision of {wanted:g}: the best {bound} on held-out faces is "
                f"{reached[best]:.4f} at margin {candidates[best]:.4f}, which keeps {int(kept[best].sum())}; "
                "lower mine.value or hold out more anchor faces"
            )
        return float(candidates[good[0]])


def calibrate(
    *,
    label: Int64[np.ndarray, " h"],
    nearest: Int64[np.ndarray, " h"],
    margin: Float32[np.ndarray, " h"],
    pool_nearest: Int64[np.ndarray, " n"],
    pool_margin: Float32[np.ndarray, " n"],
    class_weights: Float64[np.ndarray, " c"],
    support: int,
    level: float,
    estimator: Estimator = "tail",
) -> Calibration:
    """Held-out and pool scores sorted by predicted class; `class_weights` weigh held-out faces by their true class."""
    order = np.argsort(-margin, kind="stable")
    label, nearest, margin = label[order], nearest[order], margin[order]
    groups = [nearest == k for k in range(len(class_weights))]
    return Calibration(
        correct=tuple(label[group] == k for k, group in enumerate(groups)),
        margin=tuple(margin[group] for group in groups),
        weight=tuple(class_weights[label[group]] for group in groups),
        pool=tuple(np.sort(pool_margin[pool_nearest == k]) for k in range(len(class_weights))),
        support=support,
        level=level,
        estimator=estimator,
    )
