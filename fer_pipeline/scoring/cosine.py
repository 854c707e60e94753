"""Compute cosines between features and centroids in float64, the reference of every engine, and rank the classes.

Source: arXiv:2005.08551, eq. 5. The paper calls the cosine *similarity* a distance and then selects small ones; here
d = 1 - cos throughout. A zero feature has no direction: its cosines are 0, and the caller counts it.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

# An engine may differ from the reference by this much; two classes closer than twice this may change places.
TOLERANCE = 2e-6


def unit_rows(vectors: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n d"]:
    """Scales rows to length 1 in float64; zero rows stay zero, rows that are not finite become NaN somewhere."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms != 0)


def cosine_reference(
    features: Float[np.ndarray, "n d"], centroids: Float[np.ndarray, "c d"]
) -> Float64[np.ndarray, "n c"]:
    """Computes eq. 5 in float64, as it stands."""
    return unit_rows(features) @ unit_rows(centroids).T


def rank_classes(cosine: Float32[np.ndarray, "n c"]) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Finds the nearest class and the margin, best minus second best; ties go to the lowest class with margin 0.

    Both are computed from the stored float32 cosines, so that a reader finds the same numbers in the files. With a
    single class the margin is infinite. Walks class by class: fastest where a class lies together (Fortran order).
    """
    best = cosine[:, 0].copy()
    second = np.full(len(cosine), -np.inf, np.float32)
    nearest = np.zeros(len(cosine), np.int64)
    for k in range(1, cosine.shape[1]):
        column = cosine[:, k]
        np.maximum(second, np.minimum(best, column), out=second)
        np.putmask(nearest, column > best, k)
        np.maximum(best, column, out=best)
    return nearest, best - second


def without_direction(cosine: Float32[np.ndarray, "n c"]) -> Bool[np.ndarray, " n"]:
    """Tells which rows belong to a zero feature."""
    return np.logical_not(np.any(cosine, axis=1))
