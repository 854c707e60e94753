"""A network on labelled images: loss, accuracy and mean class accuracy, in batches, as in use."""

import math
from collections.abc import Sequence

import torch

from fer_pipeline.evaluation.metrics import confusion_matrix, measure
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.images import in_turn
from fer_pipeline.training.loader import ahead
from fer_pipeline.training.losses import smoothed_cross_entropy
from fer_pipeline.training.sets import ImageSet

BATCH = 256


@torch.inference_mode()
def validate(
    model: ExpressionNet,
    images: ImageSet,
    *,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
) -> dict[str, float]:
    """The three figures that a model can be chosen by. The network's mode is as before when it ends."""
    training = model.training
    model.eval()
    losses, predicted = [], []
    turns = in_turn(len(images), BATCH)
    for rows, batch in zip(turns, ahead(images.pixels, turns, threads=images.images.threads(device)), strict=True):
        labels = images.labels[torch.from_numpy(rows)].to(device)
        logits = model(preprocessing.apply(batch.to(device))).float()
        losses.append(smoothed_cross_entropy(logits, labels).double().sum())
        predicted.append(logits.argmax(1).cpu())
    model.train(training)
    confusion = confusion_matrix(images.labels.numpy(), torch.cat(predicted).numpy(), num_classes=len(classes))
    found = measure(confusion, classes=classes)
    return {
        "loss": float(torch.stack(losses).sum()) / len(images),
        "accuracy": found.accuracy,
        "mean_class_accuracy": found.mean_class_accuracy,
    }


def better(new: dict[str, float], old: dict[str, float] | None, monitor: str) -> bool:
    """Whether `new` is to be preferred; among equals of a coarse measure the lower loss decides, then the earlier."""
    if old is None:
        return True
    sign = -1.0 if monitor == "loss" else 1.0
    return (sign * new[monitor], -new["loss"]) > (sign * old[monitor], -old["loss"]) and math.isfinite(new["loss"])
