"""Measure how well a network tells the classes of images saved at several moments of a distillation (figure 7).

Source: OS-FER (arXiv:2005.08551), section 4.4.3 and figure 7: 42 = 6 x 7 images saved every ten epochs, split 5 : 1, a
CNN trained on the larger part predicts the classes of the smaller. The paper names neither the network nor how it was
split: here each image leaves out one of its moments at random, and the curve is repeated over seeds.

Moments of one image resemble each other (they share the noise they began as), so a high curve is weaker evidence of a
class pattern than it looks. Where a class has several images, a second curve, `unseen_image`, tests on all moments of
images of which no moment was trained on; it says more.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import nn
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import ProbeSettings

Curve = list[dict[str, float]]


def probe(
    saved: dict[int, Float32[np.ndarray, "steps n 3 h w"]],
    labels: Int64[np.ndarray, "steps n"],
    settings: ProbeSettings,
    *,
    num_classes: int,
    seed: int,
) -> dict[str, Any]:
    """Returns the content of `probe.json`: accuracies by epoch and seed, or the reason why there are none."""
    curves: dict[str, list[Curve]] = {"saved_image": [], "unseen_image": []}
    about = {"moments": [], "chance": 1 / num_classes, **curves}
    if len(saved) < settings.moments:
        reason = f"the probe needs {settings.moments} saved moments and found {len(saved)}"
        return {**about, "reason": f"{reason}; lower distill.save_every or raise distill.outer_epochs"}
    epochs = sorted(saved)
    moments = [epochs[index] for index in np.linspace(0, len(epochs) - 1, settings.moments).round().astype(int)]
    images = np.stack([saved[epoch].reshape(-1, *saved[epoch].shape[2:]) for epoch in moments])
    labels = labels.reshape(-1)  # of each image, at whatever moment
    for repeat in range(settings.seeds):
        draw = np.random.default_rng(derive(seed, "probe", repeat))
        parts = {"saved_image": leave_out_moments(len(moments), len(labels), draw)}
        if np.bincount(labels, minlength=num_classes).min() > 1:
            parts["unseen_image"] = np.tile(leave_out_images(labels, num_classes, draw), (len(moments), 1))
        for name, tested in parts.items():
            curves[name].append(fit_curve(images, labels, tested, settings, num_classes, seed=repeat))
    return {**about, "moments": moments, **curves, "reason": ""}


def leave_out_moments(moments: int, count: int, draw: np.random.Generator) -> Bool[np.ndarray, "moments count"]:
    """Chooses for each image one of its moments to be tested at; it is trained on at the others."""
    tested = np.zeros((moments, count), dtype=bool)
    tested[draw.integers(moments, size=count), np.arange(count)] = True
    return tested


def leave_out_images(
    labels: Int64[np.ndarray, " count"], num_classes: int, draw: np.random.Generator
) -> Bool[np.ndarray, " count"]:
    """Chooses a sixth of each class's images, at least one, to be tested at every moment and never trained on."""
    tested = np.zeros(len(labels), dtype=bool)
    for index in range(num_classes):
        rows = np.flatnonzero(labels == index)
        tested[draw.choice(rows, size=max(1, len(rows) // 6), replace=False)] = True
    return tested


def fit_curve(
    images: Float32[np.ndarray, "moments count 3 h w"],
    labels: Int64[np.ndarray, " count"],
    tested: Bool[np.ndarray, "moments count"],
    settings: ProbeSettings,
    num_classes: int,
    *,
    seed: int,
) -> Curve:
    """Trains on one part and returns the accuracy on both after each epoch, which is one step on the whole part."""
    scaled = torch.from_numpy((images - images[~tested].mean()) / (images[~tested].std() + 1e-6))
    truth = torch.from_numpy(np.tile(labels, (len(images), 1)))
    parts = {name: (scaled[mask], truth[mask]) for name, mask in (("train", ~tested), ("test", tested))}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "probe", "weights"))
        convolutions = [nn.Conv2d(inner, outer, 3, stride=2, padding=1) for inner, outer in pairwise((3, 16, 32, 32))]
        layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU())]
        network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, num_classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    curve: Curve = []
    for epoch in range(1, settings.epochs + 1):
        optimizer.zero_grad()
        inputs, targets = parts["train"]
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        with torch.no_grad():
            right = {name: float((network(x).argmax(1) == y).float().mean()) for name, (x, y) in parts.items()}
        curve.append({"epoch": epoch, **right})
    return curve
