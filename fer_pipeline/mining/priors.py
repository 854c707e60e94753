"""Held-out labels, their predictions and the pool's predictions in, a weight for every true class out.

The share of right ones among the faces predicted k depends on how frequent each true class is. If a class looks alike
in anchor and pool (label shift), the pool's shares q follow from its predictions: the shares of predictions are C q,
where C[j, y] is how often a held-out face of class y is predicted j. The likeliest q is found by expectation
maximisation (Saerens, Latinne & Decaestecker, Neural Computation 14, 2002, on hard predictions); a held-out face of
class y then weighs q[y] / p[y], with p the held-out shares. The intervals take q as known.
"""

import numpy as np
from jaxtyping import Float64, Int64

ITERATIONS = 10_000
SMALLEST = 1e-6  # keeps a class that the pool seems to lack from dividing by zero


def pool_shares(confusion: Float64[np.ndarray, "j y"], predicted: Int64[np.ndarray, " j"]) -> Float64[np.ndarray, " y"]:
    """The likeliest shares of true classes in the pool; `confusion[j, y]` has columns that sum to 1."""
    seen = predicted / predicted.sum()
    shares = np.full(confusion.shape[1], 1.0 / confusion.shape[1])
    for _ in range(ITERATIONS):
        expected = confusion @ shares
        ratio = np.divide(seen, expected, out=np.zeros_like(seen), where=expected > 0)
        update = shares * (confusion.T @ ratio)
        update /= update.sum()
        if np.abs(update - shares).max() < 1e-12:
            break
        shares = update
    return shares


def class_weights(
    label: Int64[np.ndarray, " h"],
    nearest: Int64[np.ndarray, " h"],
    pool_nearest: Int64[np.ndarray, " n"],
    *,
    num_classes: int,
) -> Float64[np.ndarray, " c"]:
    """Pool share over held-out share of every true class; 1 for a class without held-out faces."""
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (nearest, label), 1)
    support = counts.sum(axis=0)
    known = support > 0
    confusion = np.divide(counts, support, out=np.zeros_like(counts), where=known)[:, known]
    predicted = np.bincount(pool_nearest, minlength=num_classes).astype(np.int64)
    weights = np.ones(num_classes)
    if predicted.sum() and known.any():
        shares = shares_of_known(confusion, predicted)
        weights[known] = np.maximum(shares, SMALLEST) / (support[known] / support.sum())
    return weights


def shares_of_known(
    confusion: Float64[np.ndarray, "j y"], predicted: Int64[np.ndarray, " j"]
) -> Float64[np.ndarray, " y"]:
    """`pool_shares` for the classes that have held-out faces; predictions that none of them explains are left out."""
    explained = confusion.sum(axis=1) > 0
    if not predicted[explained].sum():
        return np.full(confusion.shape[1], 1.0 / confusion.shape[1])
    return pool_shares(confusion[explained], predicted[explained])
