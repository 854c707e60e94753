"""Compute losses per image, and means over a batch that may be divided among processes."""

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, distributed
from torch.nn import functional


def smoothed_cross_entropy(
    logits: Float[Tensor, "n c"], labels: Int64[Tensor, " n"], *, smoothing: float = 0.0
) -> Float[Tensor, " n"]:
    """Cross-entropy with 1 - smoothing on the true class and smoothing / (c - 1) on every other.

    Source: Happy et al. 2019, eq. 2. torch's own smoothing gives every class smoothing / c instead.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    own = log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    if smoothing == 0:
        return -own
    others = (log_p.sum(1) - own) / (logits.shape[1] - 1)
    return -(1 - smoothing) * own - smoothing * others


def weighted_mean(values: Float[Tensor, " n"], weights: Float[Tensor, " n"] | None = None) -> Float[Tensor, ""]:
    """The mean, with weights (a mask, say) where they are given; 0 where all weights are 0.

    Where processes train together it is such that its mean over them is the mean over the images of all, and so with
    its gradient, however the images and weights are divided.
    """
    grouped = distributed.is_available() and distributed.is_initialized()
    if weights is None and not grouped:
        return values.mean()
    weights = torch.ones_like(values) if weights is None else weights
    total = weights.detach().sum()
    if grouped:
        distributed.all_reduce(total)
    total = torch.where(total > 0, total, torch.ones_like(total))  # a tiny divisor would make gradients overflow
    return (values * weights).sum() * (distributed.get_world_size() if grouped else 1) / total


def soft_cross_entropy(logits: Float[Tensor, "n c"], targets: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Cross-entropy with a distribution over the classes for each image."""
    return -(targets * functional.log_softmax(logits.float(), dim=1)).sum(1)


def selection_figures(
    selected: Float[Tensor, " n"], predicted: Int64[Tensor, " n"], truth: Int64[Tensor, " n"] | None
) -> dict[str, Float[Tensor, ""]]:
    """Shares among all faces of a batch, for the history: those `selected` (0 or 1) and, where some truth is known,
    those whose truth is known (`selected_known`) and of these the right ones (`selected_right`).

    All have one divisor, so that right by known is the precision over an epoch too.
    """
    figures = {"selected": weighted_mean(selected)}
    if truth is not None:
        known = selected * (truth >= 0)
        figures |= {"selected_known": weighted_mean(known)}
        figures |= {"selected_right": weighted_mean(known * (predicted == truth))}
    return figures


def balancing_weights(counts: Int[np.ndarray, " c"]) -> Float[Tensor, " c"]:
    """A weight a class: n / (c * its images), so that every class counts alike; 0 for a class without images."""
    present = counts > 0
    weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros(len(counts)), where=present)
    return torch.from_numpy(weights.astype(np.float32))
