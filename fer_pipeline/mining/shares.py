"""Estimate the shares of the true classes in the pool, with their uncertainty, from the scores of held-out faces.

The share of right ones among the faces that are predicted k depends on how frequent each true class is. Where a class
looks alike in anchor and pool, p(x|y) is common to both and p(y) is not (label shift: Lipton, Wang & Smola, ICML 2018,
arXiv:1802.03916), the pool's shares q follow from its scores alone, in four steps:

1. Scores z become probabilities by bias-corrected temperature scaling, softmax(a z + b), fitted to the held-out
   labels (Alexandari, Kundaje & Shrikumar, ICML 2020, arXiv:1901.06852). Plain expectation maximisation on
   scores that are not calibrated fails; a step that leaned on the calibration alone would fail where it does.
2. First shares q0 come from the confusion of predictions, C q = predicted shares, C[j, y] = how often a held-out face
   of class y is predicted j (Lipton et al.), solved as the likeliest (see `solve_shares`).
3. Under q0 the probabilities become posteriors g_k(x) ~ p(k|x) q0_k / p_k, p the held-out shares (Saerens, Latinne &
   Decaestecker, Neural Computation 14, 2002, eq. 2.4): soft predictions that ask more of a rare class.
4. The shares solve M q = mean of g over the pool, M[k, y] = mean of g_k over the held-out faces of class y: step 2
   once more (in the soft form of Azizzadenesheli et al., ICLR 2019, arXiv:1903.09734). M
   corrects what is wrong with the calibration, and the calibration makes M sharp: half the error of step 2 alone in
   simulations.

Differs from the sources: two steps instead of one; the likeliest solution instead of an inverse, which may leave the
simplex, and instead of a regularised one; and the uncertainty. That is a Bayesian bootstrap (Rubin, Annals of
Statistics 9, 1981) over held-out *persons*, whose faces are alike, with a multinomial draw of the pool's means. A
resample never holds what was never seen: where none of 60 neutral faces is taken for anger, the next one may be, and a
few in a thousand of them bury a rare class. So in the bounds of a class k every other class gets a face that is surely
taken for k, of a random weight that is gamma distributed with the mean 1 / c: a Dirichlet prior of one face for each
class, spread over the c predictions (Perks, Journal of the Institute of Actuaries 73, 1947).

What it cannot see: faces of no class, faces that look like no anchor face of their class, and pools of several mixes,
whose faces are taken together.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

REPLICATES = 400
ITERATIONS = 200
FLOOR = 1e-3  # from where a class comes back that the inverse has below zero
ROWS = 2**16  # of the pool at a time
CONVERGED = 1e-9
RIDGE = 0.01  # of the calibration, as a share of one face: it keeps a scale finite where no face is mistaken
ABSENT = 1e-4  # of the pool: a class that may be rarer cannot be told from one that is not there
UNITS = 2.0**32  # posteriors are added up in whole numbers, so that the order of the shards changes no bit

Pool = Callable[[], Iterable[Float[np.ndarray, "_ c"]]]  # walks over the pool's scores, a part at a time


@dataclass(frozen=True)
class Bounds:
    """Replicates for one side of the interval of each class k.

    `share` is q; `unit` is what a held-out face of each true class weighs, so that all of a class together weigh its
    share; `mistaken` is the weight of the faces that were added as taken for k.
    """

    share: Float64[np.ndarray, "k b"]
    unit: Float64[np.ndarray, "k b c"]
    mistaken: Float64[np.ndarray, "k b"]


@dataclass(frozen=True)
class PoolShares:
    """Shares of the classes in the pool, NaN for one without held-out faces, and what held-out faces weigh by them.

    `weight` holds the bootstrap's weights of held-out faces, to be multiplied with a `unit`.
    """

    share: Float64[np.ndarray, " c"]
    low: Float64[np.ndarray, " c"]
    high: Float64[np.ndarray, " c"]
    unit: Float64[np.ndarray, " c"]
    weight: Float64[np.ndarray, "b h"]
    below: Bounds
    above: Bounds


@dataclass(frozen=True)
class Scaling:
    """Bias-corrected temperature scaling: probabilities softmax(a z + b)."""

    scale: float
    bias: Float64[np.ndarray, " c"]

    def posteriors(
        self, scores: Float[np.ndarray, "n c"], ratio: Float64[np.ndarray, " c"]
    ) -> Float64[np.ndarray, "n c"]:
        """Computes the probabilities where each class is `ratio` times as frequent as among the held-out faces."""
        with np.errstate(divide="ignore"):  # a class that is not there has the logarithm -inf and the probability 0
            return softmax(self.scale * scores.astype(np.float64) + (self.bias + np.log(ratio)), axis=1)


def fit_scaling(scores: Float[np.ndarray, "h c"], label: Int64[np.ndarray, " h"]) -> Scaling:
    """Fits bias-corrected temperature scaling by the labels' likelihood (arXiv:1901.06852).

    Its c + 1 numbers are fitted to the faces that M is made of as well: no cross-fitting, since M is the same whether
    the probabilities are right or not, and so few numbers bend little.
    """
    spread = float(scores.std()) or 1.0
    z, rows = scores.astype(np.float64) / spread, np.arange(len(label))

    def loss(parameters: Float64[np.ndarray, " p"]) -> tuple[float, Float64[np.ndarray, " p"]]:
        scale, bias = np.exp(parameters[0]), parameters[1:]
        logs = log_softmax(scale * z + bias, axis=1)
        excess = np.exp(logs)
        excess[rows, label] -= 1
        slope = np.append(scale * (excess * z).sum(), excess.sum(axis=0))
        return RIDGE * parameters @ parameters - logs[rows, label].sum(), slope + 2 * RIDGE * parameters

    fitted = minimize(loss, np.zeros(scores.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Scaling(float(np.exp(fitted[0])) / spread, fitted[1:])


def solve_shares(
    confusion: Float64[np.ndarray, "b p c"], predicted: Float64[np.ndarray, "b p"]
) -> Float64[np.ndarray, "b c"]:
    """Finds the shares q on the simplex whose predictions M q are likeliest, of `b` problems at once.

    By expectation maximisation (Saerens et al. 2002, eq. 2.9): q_y <- q_y sum_k M[k, y] predicted_k / (M q)_k, from the
    inverse, which is the solution already where it lies inside of the simplex. Columns of M sum to 1; predictions that
    no class explains are left out.
    """
    inverse = np.matmul(np.linalg.pinv(confusion), predicted[:, :, None])[:, :, 0]
    shares = np.maximum(inverse, FLOOR)
    shares /= shares.sum(axis=1, keepdims=True)
    turned = confusion.transpose(0, 2, 1)
    for _ in range(ITERATIONS):
        expected = np.matmul(confusion, shares[:, :, None])[:, :, 0]
        ratio = np.divide(predicted, expected, out=np.zeros_like(expected), where=expected > 0)
        update = shares * np.matmul(turned, ratio[:, :, None])[:, :, 0]
        update /= update.sum(axis=1, keepdims=True)
        moved = np.abs(update - shares).max()
        shares = update
        if moved < CONVERGED:
            break
    return shares


def walk(pool: Pool) -> Iterator[Float[np.ndarray, "_ c"]]:
    """Yields the pool's scores in pieces whose probabilities take little memory."""
    for part in pool():
        yield from (part[start : start + ROWS] for start in range(0, len(part), ROWS))


def predicted_shares(pool: Pool, num_classes: int) -> Float64[np.ndarray, " c"]:
    """Counts which share of the pool has its largest score in each class."""
    counts = sum((np.bincount(part.argmax(axis=1), minlength=num_classes) for part in walk(pool)), np.zeros(1, int))
    return counts / counts.sum()


def mean_posterior(
    pool: Pool, scaling: Scaling, ratio: Float64[np.ndarray, " c"]
) -> tuple[Float64[np.ndarray, " c"], int]:
    """Computes the mean of the posteriors over the pool, and the number of its faces."""
    total, count = np.zeros(len(ratio), np.int64), 0
    for part in walk(pool):
        total += np.rint(scaling.posteriors(part, ratio) * UNITS).astype(np.int64).sum(axis=0)
        count += len(part)
    return total / (UNITS * count), count


def estimate_shares(
    scores: Float[np.ndarray, "h c"],
    label: Int64[np.ndarray, " h"],
    person: Int64[np.ndarray, " h"],
    pool: Pool,
    *,
    level: float,
    seed: int,
) -> PoolShares:
    """Estimates the pool's shares as the module says; at least one face is held out and one is in the pool.

    `person` numbers the persons of the held-out faces from 0.
    """
    num_classes = scores.shape[1]
    support = np.bincount(label, minlength=num_classes)
    known = np.flatnonzero(support)
    assert len(known), "no held-out face"
    anchor = support / support.sum()
    one_hot = np.eye(num_classes)[label]

    hard = one_hot.T @ np.eye(num_classes)[scores.argmax(axis=1)] + 1 / num_classes  # of class y predicted j
    hard = (hard / hard.sum(axis=1, keepdims=True)).T[:, known]
    start = np.zeros(num_classes)
    start[known] = solve_shares(hard[None], predicted_shares(pool, num_classes)[None])[0]
    start[known] = np.maximum(start[known], 0.5 / len(label))  # a class that seems absent is still looked for
    ratio = np.divide(start / start.sum(), anchor, out=np.zeros(num_classes), where=support > 0)

    scaling = fit_scaling(scores, label)
    posterior = scaling.posteriors(scores, ratio)
    mean, size = mean_posterior(pool, scaling, ratio)

    generator = np.random.default_rng(seed)
    weight = generator.standard_exponential((REPLICATES, int(person.max()) + 1))[:, person]
    means = np.maximum(generator.multinomial(size, mean / mean.sum(), size=REPLICATES) / size, 1e-12)
    prior = generator.standard_gamma(1 / num_classes, (REPLICATES, num_classes))

    parts = posterior[:, :, None] * one_hot[:, None, known]
    sums = (weight @ parts.reshape(len(label), -1)).reshape(REPLICATES, num_classes, len(known))
    totals = np.maximum(weight @ one_hot[:, known], 1e-12)
    prior = prior[:, known]
    point = solve_shares((parts.sum(axis=0) / support[known])[None], mean[None])[0]

    def bound(k: int, *, below: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The replicates of class k with the added faces on the side that lowers, or raises, its share."""
        added, changed = prior * ((known != k) if below else (known == k)), sums.copy()
        if below:
            changed[:, k] += added
        else:  # a face of k that is taken for anything else
            changed += np.where(np.arange(num_classes) == k, 0, 1 / max(num_classes - 1, 1))[:, None] * added[:, None]
        total = totals + added
        shares = solve_shares(changed / total[:, None], means)
        unit = np.zeros((REPLICATES, num_classes))
        unit[:, known] = shares / total
        mistaken = (added * shares / total).sum(axis=1) if below else np.zeros(REPLICATES)
        share = np.full(REPLICATES, np.nan)
        if k in known:
            share = shares[:, np.searchsorted(known, k)]
        return share, unit, mistaken

    below, above = (
        Bounds(*map(np.stack, zip(*(bound(k, below=side) for k in range(num_classes)), strict=True)))
        for side in (True, False)
    )
    share, unit = np.full(num_classes, np.nan), np.zeros(num_classes)
    share[known], unit[known] = point, point / support[known]
    tail = (1 - level) / 2
    low, high = np.quantile(below.share, tail, axis=1), np.quantile(above.share, 1 - tail, axis=1)
    low = np.where(low < ABSENT, 0.0, low)  # NaN stays
    return PoolShares(share, np.minimum(low, share), np.maximum(high, share), unit, weight, below, above)
