"""Combine intervals of shares into that of their mean (MOVER: Zou & Donner, Statistics in Medicine 27, 2008, eq. 8)."""

import numpy as np
from jaxtyping import Float64, Num

PerClass = Float64[np.ndarray, "t c"]
Shares = Float64[np.ndarray, " t"]


def weighted_interval(
    share: PerClass, low: PerClass, high: PerClass, counts: Num[np.ndarray, "t c"]
) -> tuple[Shares, Shares, Shares]:
    """Compute the weighted mean of the shares of `c` classes for `t` sets with these counts, and its interval.

    The source knows all: here the mean leaves out classes without a share (NaN), the interval does not. Their faces are
    wrong at its low end and right at its high one, as are those of a class without a lower bound. NaN where no class
    has a share.
    """
    unknown, faces = np.isnan(share), counts.astype(np.float64)
    known = np.where(unknown, 0.0, faces)
    total, everyone = known.sum(axis=1, keepdims=True), faces.sum(axis=1)
    parts = np.divide(known, total, out=np.full(known.shape, np.nan), where=total > 0)
    bounded = np.where(np.isnan(low), 0.0, np.nan_to_num(share))  # what is not known of several does not cancel out
    share, low, high = (np.nan_to_num(bound) for bound in (share, low, high))
    mean = np.minimum((parts * share).sum(axis=1), 1)  # parts of faces that are all right may add up to 1 + 2e-16
    least = (parts * bounded).sum(axis=1) - np.sqrt((parts**2 * (bounded - low) ** 2).sum(axis=1))
    most = mean + np.sqrt((parts**2 * (high - share) ** 2).sum(axis=1))
    covered = np.divide(total[:, 0], everyone, out=np.ones(len(everyone)), where=everyone > 0)
    return mean, covered * np.clip(least, 0, 1), 1 - covered * (1 - np.clip(most, 0, 1))
