"""Estimate the precision of a mined set, class by class and with bounds, from the scores of held-out anchor faces.

Held-out faces are neither trained on nor in the centroids. For a threshold m of a rule and a predicted class k, the
precision p_k(m) is the share of right ones among the held-out faces that were predicted k with a value of at least m.
`class_prior: pool` weighs every held-out face with the share of its true class in the pool over their number, so that

    p_k(m) = q_k P(k, m | k) / sum_y q_y P(k, m | y),   P(k, m | y) = how often a face of class y is predicted k at m,

and takes the interval from replicates in which the shares q and the faces vary together (see `shares`). `anchor` takes
the mix of the anchor for the pool's, and Wilson's interval (Journal of the American Statistical Association 22, 1927):
in a pool where a class is rare that is wrong several times over, and the interval does not see it.

The precision of a set is the mean of p_k weighted by the *mined* counts; its interval combines the classes' own (see
`evaluation.intervals`). No number stands on fewer than `support` held-out faces. Beyond the threshold that so many of a
class still reach, their precision is carried on: precision rises with the threshold, so this errs low, and the upper
bound is 1. A class with fewer has no estimate: it is left out of the mean, counts as wrong in its lower bound and as
right in the upper one, and a wanted precision selects nothing of it.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Num
from pydantic import Field
from scipy.special import ndtri

from fer_pipeline.artifacts.mined import RuleSweep
from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Settings
from fer_pipeline.evaluation.intervals import PerClass, Shares, weighted_interval
from fer_pipeline.mining.shares import Bounds, PoolShares

Labels = Int64[np.ndarray, " n"]
Values = Float[np.ndarray, " n"]


class CalibrationSettings(Settings):
    """How the precision of the mined set is estimated."""

    class_prior: Literal["pool", "anchor"] = "pool"  # whose shares of the true classes; anchor: as if the pool had them
    support: Annotated[int, Field(ge=1)] = 20  # held-out faces below which nothing is said of a class
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95  # of the intervals


class OutOfReachError(DataError):
    """No threshold gives the wanted precision."""


@dataclass(frozen=True)
class Estimate:
    """Precisions of `t` thresholds for `c` classes; `heldout` counts the faces behind each.

    NaN without evidence. `low` alone is NaN where the class may be absent from the pool.
    """

    precision: PerClass
    low: PerClass
    high: PerClass
    heldout: Int64[np.ndarray, "t c"]

    def combined(self, counts: Num[np.ndarray, "t c"]) -> tuple[Shares, Shares, Shares]:
        """Returns precision, low and high of sets with these counts per class (see `weighted_interval`)."""
        return weighted_interval(self.precision, self.low, self.high, counts)


@dataclass(frozen=True)
class Calibration:
    """Held-out faces and the pool's values by predicted class, one array a class, ready to answer for any threshold."""

    order: tuple[Int64[np.ndarray, " _"], ...]  # places of the held-out faces predicted so, by falling value
    label: tuple[Int64[np.ndarray, " _"], ...]
    value: tuple[Float64[np.ndarray, " _"], ...]
    pool: tuple[Float[np.ndarray, " _"], ...]  # by rising value
    shares: PoolShares | None  # None: those of the anchor
    support: Int64[np.ndarray, " c"]  # held-out faces of each true class
    settings: CalibrationSettings

    @property
    def evident(self) -> Bool[np.ndarray, " c"]:
        """Which classes have held-out faces enough for a number: predicted so and, for shares of the pool, truly so."""
        predicted = np.array([len(value) for value in self.value])
        least = predicted if self.shares is None else np.minimum(predicted, self.support)
        return least >= self.settings.support

    @property
    def may_be_absent(self) -> Bool[np.ndarray, " c"]:
        """Which classes the pool may lack, by the lower bound of their share."""
        return np.zeros(len(self.pool), bool) if self.shares is None else self.shares.low == 0

    def reasons(self) -> list[str]:
        """Says of each class why its precision, or the lower bound of it, is not known; empty where it is."""
        few = "{} held-out faces {} so, {} wanted"
        texts = []
        for k, (value, support) in enumerate(zip(self.value, self.support.tolist(), strict=True)):
            number, wanted = len(value), self.settings.support
            if number < wanted:
                texts.append(few.format(number, "predicted", wanted))
            elif not self.evident[k]:
                texts.append(few.format(support, "labelled", wanted))
            else:
                texts.append("its share of the pool may be 0" if self.may_be_absent[k] else "")
        return texts

    def count_passing(self, thresholds: PerClass) -> Int64[np.ndarray, "t c"]:
        """Counts the pool faces of each class that pass, before any cap."""
        columns = [len(pool) - np.searchsorted(pool, thresholds[:, k]) for k, pool in enumerate(self.pool)]
        return np.stack(columns, axis=1)

    def thresholds_for(self, counts: Int64[np.ndarray, " t"]) -> Shares:
        """Finds the smallest threshold for all classes that at most so many faces pass; infinite where none does."""
        values = np.sort(np.concatenate(self.pool)).astype(np.float64)
        if not len(values):
            return np.full(len(counts), np.inf)
        places = len(values) - np.minimum(counts, len(values))
        offers = np.append(values, np.inf)[places]
        tied = np.searchsorted(values, offers) < places  # the tie crosses the count and stays out as a whole
        above = np.append(values, np.inf)[np.searchsorted(values, offers, side="right")]
        return np.where(tied, above, offers)

    def estimate(self, thresholds: PerClass) -> Estimate:
        """Estimates the precision of each class at each of `t` thresholds."""
        columns, evident = [], self.evident
        for k, value in enumerate(self.value):
            if not evident[k]:
                columns.append([*[np.full(len(thresholds), np.nan)] * 3, np.full(len(thresholds), len(value))])
                continue
            passing = np.searchsorted(-value, -thresholds[:, k], side="right")
            last = value[self.settings.support - 1]
            least = np.searchsorted(-value, -last, side="right")  # faces of equal value count together
            used = np.maximum(passing, least)
            share, low, high = self._interval(k, used)
            columns.append([share, low, np.where(used > passing, 1.0, high), used])
        return Estimate(*(np.stack(part, axis=1) for part in zip(*columns, strict=True)))

    def _interval(self, k: int, used: Int64[np.ndarray, " t"]) -> tuple[Shares, Shares, Shares]:
        """The precision of class k over its first `used` held-out faces, and its bounds."""
        right, label, shares = self.label[k] == k, self.label[k], self.shares
        if shares is None:
            share = np.cumsum(right)[used - 1] / used
            return share, *wilson(share, used, level=self.settings.level)
        unit = shares.unit[label]
        whole, part = np.cumsum(unit)[used - 1], np.cumsum(unit * right)[used - 1]
        share = np.divide(part, whole, out=np.zeros(len(used)), where=whole > 0)
        weight, tail = shares.weight[:, self.order[k]], (1 - self.settings.level) / 2

        def replicates(bounds: Bounds) -> Float64[np.ndarray, "b t"]:
            each = weight * bounds.unit[k][:, label]
            whole = np.cumsum(each, axis=1)[:, used - 1] + bounds.mistaken[k][:, None]
            return np.cumsum(each * right, axis=1)[:, used - 1] / np.maximum(whole, np.finfo(float).tiny)

        low, high = np.quantile(replicates(shares.below), tail, axis=0), 1.0
        high = np.quantile(replicates(shares.above), 1 - tail, axis=0)
        low = np.full(len(used), np.nan) if self.may_be_absent[k] else np.minimum(low, share)
        return share, low, np.maximum(high, share)

    def threshold_for_precision(
        self, wanted: float, *, group: Int64[np.ndarray, " g"], present: Values, bound: str
    ) -> float:
        """Finds the smallest threshold at which the estimate (or its lower bound) for the classes of `group` is wanted.

        Looked for among the values of held-out faces, where the estimate changes, and the smallest one of the pool.
        """
        positive = present[present > 0].astype(np.float64)
        if len(positive) == 0:
            return np.inf
        least, most = positive.min(), positive.max()
        heldout = np.concatenate([self.value[k] for k in group])
        offers = np.unique(np.append(heldout[(heldout > least) & (heldout <= most)], least))
        thresholds = np.full((len(offers), len(self.value)), np.inf)
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

    def grid(self, *, points: int, used: Float64[np.ndarray, " u"]) -> Shares:
        """Returns `points` thresholds, evenly from 0 to the largest value of the pool, and those in use."""
        top = max((float(pool[-1]) for pool in self.pool if len(pool)), default=0.0)
        return np.unique(np.concatenate([np.linspace(0.0, top, points), used[np.isfinite(used)]]))

    def sweep(self, thresholds: Shares) -> RuleSweep:
        """Estimates at thresholds that serve all classes, before caps."""
        every = np.repeat(thresholds[:, None], len(self.pool), axis=1)
        counts, estimate = self.count_passing(every), self.estimate(every)
        interval = np.stack([estimate.precision, estimate.low, estimate.high], axis=2)
        overall = np.stack(estimate.combined(counts), axis=1)
        return RuleSweep(thresholds, counts, estimate.heldout, interval, overall)


def calibrate(
    heldout: Ranking,
    label: Labels,
    pool: Ranking,
    settings: CalibrationSettings,
    *,
    shares: PoolShares | None,
    num_classes: int,
) -> Calibration:
    """Sorts held-out faces, whose labels are known, and pool faces by predicted class, as one rule ranks them.

    `shares` are the pool's, None where the anchor's are to stand for them.
    """
    order = np.argsort(-heldout.value, kind="stable")
    groups = [order[heldout.label[order] == k] for k in range(num_classes)]
    return Calibration(
        order=tuple(groups),
        label=tuple(label[group] for group in groups),
        value=tuple(heldout.value[group].astype(np.float64) for group in groups),
        pool=tuple(np.sort(pool.value[pool.label == k]) for k in range(num_classes)),
        shares=shares,
        support=np.bincount(label, minlength=num_classes),
        settings=settings,
    )


def wilson(
    share: Float64[np.ndarray, "*t"], number: Num[np.ndarray, "*t"], *, level: float
) -> tuple[Float64[np.ndarray, "*t"], Float64[np.ndarray, "*t"]]:
    """Computes Wilson's interval of a share of `number` trials, two-sided at `level`."""
    z = float(ndtri(0.5 + level / 2))
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
