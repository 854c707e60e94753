"""The probe of figure 7: images saved at several moments of a distillation in, how well their classes can be told out.

Source: OS-FER (arXiv:2005.08551), section 4.4.3 and figure 7: 42 = 6 x 7 images saved every ten epochs, split 5 : 1, a
CNN trained on the larger part predicts the classes of the smaller. The paper names neither the network nor how it was
split: here each image leaves out one of its moments at random, and the curve is repeated over seeds.

Moments of one image resemble each other (they share the noise they began as), so a high curve is weaker evidence of a
class pattern than it looks. Where a class has several images, a second curve, `unseen_image`, tests on all moments of
images of which no moment was trained on; it says more.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import ProbeSettings

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class _Part:
    images: Tensor
    labels: Tensor


def probe(
    saved: dict[int, Float32[np.ndarray, "steps n 3 h w"]],
    labels: Int64[np.ndarray, "steps n"],
    settings: ProbeSettings,
    *,
    num_classes: int,
    seed: int,
) -> dict[str, Any]:
    """The content of `probe.json`: accuracies by epoch and seed, or the reason why there are none."""
    about = {"moments": [], "chance": 1 / num_classes, "saved_image": [], "unseen_image": []}
    if len(saved) < settings.moments:
        reason = (
            f"the probe needs {settings.moments} saved moments and found {len(saved)}; "
            "lower distill.save_every or raise distill.outer_epochs"
        )
        return {**about, "reason": reason}
    epochs = sorted(saved)
    moments = [epochs[index] for index in np.linspace(0, len(epochs) - 1, settings.moments).round().astype(int)]
    images = np.stack([saved[epoch].reshape(-1, *saved[epoch].shape[2:]) for epoch in moments])
    chains = labels.reshape(-1)  # a chain is one image through the moments
    per_class = np.bincount(chains, minlength=num_classes)
    curves: dict[str, list[Curve]] = {"saved_image": [], "unseen_image": []}
    for repeat in range(settings.seeds):
        draw = np.random.default_rng(derive(seed, "probe", repeat))
        curves["saved_image"].append(
            _curve(
                images, chains, leave_out_moments(len(moments), len(chains), draw), settings, num_classes, seed=repeat
            )
        )
        if per_class.min() > 1:
            held = np.broadcast_to(leave_out_images(chains, num_classes, draw), images.shape[:2])
            curves["unseen_image"].append(_curve(images, chains, held, settings, num_classes, seed=repeat))
    return {**about, "moments": moments, **curves, "reason": ""}


def leave_out_moments(moments: int, chains: int, draw: np.random.Generator) -> Bool[np.ndarray, "moments chains"]:
    """Each image is tested at one of its moments and trained on at the others."""
    held = np.zeros((moments, chains), dtype=bool)
    held[draw.integers(moments, size=chains), np.arange(chains)] = True
    return held


def leave_out_images(
    chains: Int64[np.ndarray, " chains"], num_classes: int, draw: np.random.Generator
) -> Bool[np.ndarray, " chains"]:
    """A sixth of each class's images, at least one, is tested at every moment and never trained on."""
    held = np.zeros(len(chains), dtype=bool)
    for index in range(num_classes):
        rows = np.flatnonzero(chains == index)
        held[draw.choice(rows, size=max(1, len(rows) // 6), replace=False)] = True
    return held


def small_network(num_classes: int) -> nn.Module:
    """Three strided convolutions, a 4 x 4 map and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, num_classes),
    )


def _curve(
    images: Float32[np.ndarray, "moments chains 3 h w"],
    chains: Int64[np.ndarray, " chains"],
    held: Bool[np.ndarray, "moments chains"],
    settings: ProbeSettings,
    num_classes: int,
    *,
    seed: int,
) -> Curve:
    """Accuracy on both parts after each epoch; an epoch is one step on the whole training part."""
    labels = np.broadcast_to(chains, held.shape)
    mean, deviation = images[~held].mean(), images[~held].std() + 1e-6
    scaled = (images - mean) / deviation
    trained = _Part(torch.from_numpy(scaled[~held]), torch.from_numpy(labels[~held].copy()))
    tested = _Part(torch.from_numpy(scaled[held]), torch.from_numpy(labels[held].copy()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "probe", "weights"))
        network = small_network(num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    curve: Curve = []
    for epoch in range(1, settings.epochs + 1):
        optimizer.zero_grad()
        functional.cross_entropy(network(trained.images), trained.labels).backward()
        optimizer.step()
        curve.append({"epoch": epoch, "train": _accuracy(network, trained), "test": _accuracy(network, tested)})
    return curve


@torch.no_grad()
def _accuracy(network: nn.Module, part: _Part) -> float:
    return float((network(part.images).argmax(1) == part.labels).float().mean())
