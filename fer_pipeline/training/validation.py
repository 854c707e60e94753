"""Measure a network on labelled images as it will be used: loss, accuracy and mean class accuracy."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.evaluation.metrics import confusion_matrix, measure
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.images import Rows
from fer_pipeline.training.losses import smoothed_cross_entropy
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.settings import Until

BATCH = 256


def predict_logits(
    model: nn.Module,
    images: ImageSet,
    rows: Rows,
    preprocessing: Preprocessing,
    device: torch.device,
    compute: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Float[Tensor, "k c"]]:
    """Class scores of some rows in batches, or what `compute` makes of their inputs, in evaluation mode.

    Every module's mode is as before after each batch.
    """
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    for pixels in prefetch(images.pixels, batches, threads=images.images.threads(device)):
        modes = {module: module.training for module in model.modules()}
        model.eval()
        with torch.inference_mode():
            inputs = pixels.to(device) if images.images.prepared else preprocessing.apply(pixels.to(device))
            logits = (compute or model)(inputs).float()
        for module, training in modes.items():
            module.training = training
        yield logits


def validate(
    model: ExpressionNet, images: ImageSet, preprocessing: Preprocessing, classes: Sequence[str], device: torch.device
) -> dict[str, float]:
    logits = torch.cat(list(predict_logits(model, images, np.arange(len(images)), preprocessing, device)))
    losses = smoothed_cross_entropy(logits, images.labels.to(device)).double().split(BATCH)
    confusion = confusion_matrix(images.labels.numpy(), logits.argmax(1).cpu().numpy(), num_classes=len(classes))
    metrics = measure(confusion, classes=classes)
    return {
        "loss": float(torch.stack([part.sum() for part in losses]).sum()) / len(images),
        "accuracy": metrics.accuracy,
        "mean_class_accuracy": metrics.mean_class_accuracy,
    }


def find_end(values: Sequence[float], until: Until, *, monitor: str, cosine: bool) -> tuple[int | None, int, bool]:
    """Says when a training ends, of which an epoch each has given the `values` of its monitor.

    Returns the epoch after which the learning rate falls (None as long as the validation rises), the last epoch
    (`at_most` as long as it is not known), and whether the validation had stopped rising. A function of the values, so
    that a resumed training and every process of several come to the same.
    """
    decay = until.decay if cosine else 0.0
    longest = int(until.at_most / (1 + decay))
    sign, every = -1.0 if monitor == "loss" else 1.0, until.checks_every
    best, idle = -math.inf, 0
    for epoch in range(every, min(len(values), longest) + 1, every):
        check = sign * float(np.mean(values[epoch - every : epoch]))
        best, idle = (check, 0) if check > best + until.smallest_gain else (best, idle + 1)
        if idle >= until.patience and epoch >= until.at_least:
            return epoch, epoch + math.ceil(decay * epoch), True
    if len(values) >= longest:
        return longest, until.at_most, False
    return None, until.at_most, False


def better(new: dict[str, float], old: dict[str, float] | None, monitor: str) -> bool:
    """Whether `new` is to be preferred; among equals of a coarse measure the lower loss decides, then the earlier."""
    if old is None:
        return True
    sign = -1.0 if monitor == "loss" else 1.0
    return (sign * new[monitor], -new["loss"]) > (sign * old[monitor], -old["loss"]) and math.isfinite(new["loss"])
