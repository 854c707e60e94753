"""Shares and the numbers behind them in, intervals out.

Source: Wilson, Journal of the American Statistical Association 22 (1927), for one share, here for any effective number;
Zou & Donner, Statistics in Medicine 27 (2008), for a weighted sum of independent shares (MOVER, method of variance
estimates recovery).
"""

import numpy as np
from jaxtyping import Float64, Num
from scipy.special import ndtri


def wilson(
    share: Float64[np.ndarray, "*t"], number: Num[np.ndarray, "*t"], *, level: float
) -> tuple[Float64[np.ndarray, "*t"], Float64[np.ndarray, "*t"]]:
    """Wilson's interval of a share of `number` trials, two-sided at `level`."""
    z = float(ndtri(0.5 + level / 2))
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)


def weighted_interval(
    share: Float64[np.ndarray, "t c"],
    low: Float64[np.ndarray, "t c"],
    high: Float64[np.ndarray, "t c"],
    *,
    weights: Num[np.ndarray, "t c"],
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """The weighted mean of shares and its interval; shares that are NaN are left out, rows without any are NaN."""
    known = np.where(np.isnan(share), 0.0, weights.astype(np.float64))
    total = known.sum(axis=1, keepdims=True)
    parts = np.divide(known, total, out=np.full(known.shape, np.nan), where=total > 0)
    share, low, high = (np.where(np.isnan(share), 0.0, part) for part in (share, low, high))
    mean = (parts * share).sum(axis=1)
    below = np.sqrt((parts**2 * (share - low) ** 2).sum(axis=1))
    above = np.sqrt((parts**2 * (high - share) ** 2).sum(axis=1))
    return mean, np.clip(mean - below, 0, 1), np.clip(mean + above, 0, 1)
