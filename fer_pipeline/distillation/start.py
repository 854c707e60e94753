"""Create what a distillation starts from: synthetic images, step sizes, and the weights theta_0 of each training.

Source: Wang et al. (arXiv:1811.10959). As in their published code a step size is the softplus of a free number, so that
it stays positive, and images start as standard normal noise in the network's normalised input space. Sections 3.2 and
3.4: a fixed start is one set of weights, a random start a fresh draw per outer step, so that the images serve any draw.
OS-FER (arXiv:2005.08551) eq. 8 has one theta_0, and its figure 4 the images as pictures for a person's eye.

Batch norm: a fixed start has its running statistics frozen through all unrolled steps. A random draw has none worth
freezing, and those of seven odd images are no better, so its batch norms are replaced by group norms.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.distillation.unrolled import Parameters, trainable
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings

GAP = 2  # white pixels between the pictures
MAX_GROUPS = 32  # as Wu & He (arXiv:1803.08494)


class InitialWeights(NamedTuple):
    """A network in evaluation mode (frozen statistics, no dropout), and the weights of the n-th start for it."""

    network: nn.Module
    draw: Callable[[int], Parameters]


def fixed_weights(network: nn.Module) -> InitialWeights:
    network = network.requires_grad_(True).eval()
    parameters = trainable(network)
    return InitialWeights(network, lambda number: parameters)


def random_weights(settings: NetworkSettings, num_classes: int, *, seed: int, device: torch.device) -> InitialWeights:
    """Starts from a fresh draw of the architecture, with group norms where it has batch norms."""

    def build_network(number: int) -> nn.Module:
        network = build(settings, num_classes, derive(seed, "distill", "start", number))
        for name, module in list(network.named_modules()):
            if isinstance(module, _BatchNorm):
                channels = module.num_features
                norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels, eps=module.eps, affine=module.affine)
                network.set_submodule(name, norm)
        return network.requires_grad_(True).eval().to(device)

    network = build_network(0)
    if statistics := [name for name, _ in network.named_buffers() if "running" in name]:
        raise ConfigError(
            f"distill.start: random needs a network without running statistics, {settings.name} has {statistics[0]}; "
            "use start: fixed or another network"
        )
    return InitialWeights(network, lambda number: trainable(build_network(number)))


@dataclass(frozen=True)
class Synthetic:
    """What a distillation learns. The tensors are changed in place by the outer optimiser."""

    images: Tensor  # [steps n 3 h w], normalised
    raw_sizes: Tensor  # [steps]
    labels: Tensor  # [steps n], fixed

    @property
    def step_sizes(self) -> Float[Tensor, " steps"]:
        return functional.softplus(self.raw_sizes.detach())


def start_synthetic(
    settings: DistillSettings, source: Source, preprocessing: Preprocessing, *, seed: int, device: torch.device
) -> Synthetic:
    """Creates the tensors before the first outer step; every step has class 0 `per_class` times, then class 1, …"""
    classes = torch.arange(len(source.classes)).repeat_interleave(settings.per_class)
    labels = classes.expand(settings.steps, -1).contiguous()
    generator = torch.Generator().manual_seed(derive(seed, "distill", "noise"))
    images = torch.randn((*labels.shape, 3, preprocessing.size, preprocessing.size), generator=generator)
    draw = np.random.default_rng(derive(seed, "distill", "real"))
    for index in range(len(source.classes)) if settings.initial == "real" else ():
        rows, members = np.flatnonzero(source.labels == index), labels == index
        if len(rows):  # a class without an image starts as noise
            count = int(members.sum())
            chosen = draw.choice(rows, size=count, replace=len(rows) < count)
            images[members] = preprocessing.apply(source.images(chosen))
    inverse_softplus = settings.step_size + float(np.log(-np.expm1(-settings.step_size)))
    sizes = torch.full((settings.steps,), inverse_softplus)
    return Synthetic(images=images.to(device), raw_sizes=sizes.to(device), labels=labels.to(device))


def write_previews(
    folder: Path, images: Float32[np.ndarray, "steps n 3 h w"], *, classes: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Writes `grid.png` (a row a step, columns by class) and `<class>.png` (a row a step, the class's images)."""
    pixels = preprocessing.restore(torch.from_numpy(images).flatten(0, 1)).unflatten(0, images.shape[:2]).numpy()
    parts = dict(zip(classes, np.split(pixels, len(classes), axis=1), strict=True))
    for name, pictures in {"grid": pixels, **parts}.items():
        padded = np.pad(pictures, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        rows, columns, height, width, _ = padded.shape
        joined = padded.swapaxes(1, 2).reshape(rows * height, columns * width, 3)[:-GAP, :-GAP]
        with replacing(folder / f"{name}.png") as temporary:
            Image.fromarray(joined).save(temporary, "PNG")
