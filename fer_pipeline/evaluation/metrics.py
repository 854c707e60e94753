"""Compute accuracy, mean class accuracy, its spread over classes, macro-F1 and confusion matrices.

Sources: accuracy and mean class accuracy as reported throughout the field; the standard deviation of the per-class
accuracies follows Zeng et al., CVPR 2022 (Meta-Face2Exp, tables 4 and 5). The paper does not say which deviation it
takes; ours is the population's (divided by the number of classes), since the classes are all there are and no sample.

A class without a single sample in the test set has no accuracy. It is left out of the class mean, the deviation and the
macro-F1, and named in `Metrics.absent`; a wrong prediction *of* such a class still counts as a miss of the true one.

Every function takes stacks of confusion matrices (leading axes), so that bootstrap replicates cost one call.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

METRICS = ("accuracy", "mean_class_accuracy", "class_accuracy_sd", "macro_f1")


@dataclass(frozen=True)
class Metrics:
    """The figures of one model on one test set; the accuracies are fractions of 1."""

    accuracy: float
    mean_class_accuracy: float
    class_accuracy_sd: float
    macro_f1: float
    num_samples: int
    class_accuracies: dict[str, float]  # of the classes present
    supports: dict[str, int]  # of all classes
    absent: tuple[str, ...]


def confusion_matrix(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], *, num_classes: int
) -> Int[np.ndarray, "c c"]:
    """Count predictions: rows are actual classes, columns predicted ones."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def class_accuracies(confusion: Num[np.ndarray, "*b c c"]) -> Float[np.ndarray, "*b c"]:
    """Return the recall of every class, NaN where the class has no sample."""
    return np.diagonal(row_shares(confusion), axis1=-2, axis2=-1)


def row_shares(confusion: Num[np.ndarray, "*b c c"]) -> Float[np.ndarray, "*b c c"]:
    """Return the share of each actual class predicted as each class; NaN rows where the class has no sample."""
    return _ratio(confusion, confusion.sum(-1, keepdims=True))


def class_f1(confusion: Num[np.ndarray, "*b c c"]) -> Float[np.ndarray, "*b c"]:
    """Return the F1 score of every class, NaN where the class has no sample."""
    support, chosen = confusion.sum(-1), confusion.sum(-2)
    return _ratio(2 * np.diagonal(confusion, axis1=-2, axis2=-1), np.where(support > 0, support + chosen, 0))


def all_metrics(confusion: Num[np.ndarray, "*b c c"]) -> Float[np.ndarray, "*b 4"]:
    """Return the four figures in the order of `METRICS`; NaN throughout for an empty matrix."""
    recall = class_accuracies(confusion)
    accuracy = _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))
    with warnings.catch_warnings():
        # A replicate may hold no sample at all: its class mean is NaN, which is what we want to hand on.
        warnings.simplefilter("ignore", RuntimeWarning)
        figures = (accuracy, np.nanmean(recall, -1), np.nanstd(recall, -1), np.nanmean(class_f1(confusion), -1))
    return np.stack(np.broadcast_arrays(*figures), -1).astype(np.float64)


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """Divide counts, NaN where the whole is zero."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def measure(confusion: Int[np.ndarray, "c c"], *, classes: Sequence[str]) -> Metrics:
    """Compute the figures of one confusion matrix with the classes named."""
    assert len(classes) == len(confusion)
    recall, support = class_accuracies(confusion), confusion.sum(-1)
    figures = dict(zip(METRICS, map(float, all_metrics(confusion)), strict=True))
    return Metrics(
        **figures,
        num_samples=int(support.sum()),
        class_accuracies={name: float(recall[k]) for k, name in enumerate(classes) if support[k]},
        supports={name: int(support[k]) for k, name in enumerate(classes)},
        absent=tuple(name for k, name in enumerate(classes) if not support[k]),
    )
