"""Right and wrong held-out faces by margin in, a precision that cannot fall as the margin rises out.

Isotonic regression (pool adjacent violators) gives each margin a probability of being right. The precision of a mined
set is the mean of those probabilities over the *pool's* passing faces, so a pool whose passing faces lie lower in the
margins than the anchor's is not flattered.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
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
    expected = np.append(0.0, np.cumsum(chance_at(pool, steps, chance)))
    below = np.searchsorted(pool, thresholds)
    passing = len(pool) - below
    mean = (expected[-1] - expected[below]) / np.maximum(passing, 1)
    return np.where(passing > 0, mean, chance_at(thresholds, steps, chance))


def chance_at(
    margins: Float[np.ndarray, " n"], steps: Float64[np.ndarray, " u"], chance: Float64[np.ndarray, " u"]
) -> Float64[np.ndarray, " n"]:
    """The chance at each margin."""
    return chance[np.maximum(np.searchsorted(steps, margins, side="right") - 1, 0)]
