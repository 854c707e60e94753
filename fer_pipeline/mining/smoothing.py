"""Right and wrong held-out faces by margin in, a precision that cannot fall as the margin rises out.

Isotonic regression (pool adjacent violators) gives each margin a probability of being right. The precision of a mined
set is the mean of those probabilities over the *pool's* passing faces, so a pool whose passing faces lie lower in the
margins than the anchor's is not flattered.
"""

import numpy as np
from jaxtyping import Bool, Float32, Float64
from scipy.optimize import isotonic_regression


def isotonic_share(
    correct: Bool[np.ndarray, " h"],
    margin: Float64[np.ndarray, " h"],
    weight: Float64[np.ndarray, " h"],
    *,
    pool: Float32[np.ndarray, " n"],
    thresholds: Float64[np.ndarray, " t"],
) -> Float64[np.ndarray, " t"]:
    """The expected precision of the pool's faces at or above each threshold; `pool` rises.

    Where no pool face passes, the probability at the threshold itself stands in.
    """
    steps, place = np.unique(margin, return_inverse=True)
    total = np.bincount(place, weights=weight)
    right = np.bincount(place, weights=weight * correct) / total
    chance = np.asarray(isotonic_regression(right, weights=total, increasing=True).x)
    # A face has the chance of the last step at or below its margin; below the first step, that of the first.
    lower = np.append(-np.inf, steps[1:])
    upper = np.append(steps[1:], np.inf)
    starts = np.maximum(lower[None, :], thresholds[:, None])
    ends = np.maximum(upper[None, :], starts)
    numbers = np.searchsorted(pool, ends.ravel()) - np.searchsorted(pool, starts.ravel())
    numbers = numbers.reshape(starts.shape)
    passing = numbers.sum(axis=1)
    at = chance[np.clip(np.searchsorted(steps, thresholds, side="right") - 1, 0, len(steps) - 1)]
    return np.where(passing > 0, (numbers @ chance) / np.maximum(passing, 1), at)
