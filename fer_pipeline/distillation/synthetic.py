"""Create the synthetic images and step sizes that the outer optimiser moves.

Source: Wang et al. (arXiv:1811.10959); as in their published code a step size is the softplus of a free number, so that
it stays positive, and images start as standard normal noise in the network's normalised input space.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.settings import DistillSettings
from fer_pipeline.distillation.source import Source
from fer_pipeline.networks.preprocessing import Preprocessing


@dataclass(frozen=True)
class Synthetic:
    """What a distillation learns. The tensors are changed in place by the outer optimiser."""

    images: Tensor  # [steps n 3 h w], normalised
    raw_sizes: Tensor  # [steps]
    labels: Tensor  # [steps n], fixed

    @property
    def step_sizes(self) -> Float[Tensor, " steps"]:
        """The positive step sizes."""
        return functional.softplus(self.raw_sizes.detach())

    def size_slope(self) -> Float[Tensor, " steps"]:
        """Returns d(step size)/d(free number)."""
        return torch.sigmoid(self.raw_sizes.detach())


def start_synthetic(
    settings: DistillSettings, source: Source, preprocessing: Preprocessing, *, seed: int, device: torch.device
) -> Synthetic:
    """Creates the tensors before the first outer step; every step has class 0 `per_class` times, then class 1, …"""
    classes = torch.arange(len(source.classes)).repeat_interleave(settings.per_class)
    labels = classes.expand(settings.steps, -1).contiguous()
    images = initial_images(settings, source, preprocessing, labels, seed=seed)
    inverse_softplus = settings.step_size + float(np.log(-np.expm1(-settings.step_size)))
    sizes = torch.full((settings.steps,), inverse_softplus)
    return Synthetic(images=images.to(device), raw_sizes=sizes.to(device), labels=labels.to(device))


def initial_images(
    settings: DistillSettings,
    source: Source,
    preprocessing: Preprocessing,
    labels: Int[Tensor, "steps n"],
    *,
    seed: int,
) -> Float[Tensor, "steps n 3 h w"]:
    """Draws noise, or real images of the right class from the source; a class without any starts as noise."""
    generator = torch.Generator().manual_seed(derive(seed, "distill", "noise"))
    images = torch.randn((*labels.shape, 3, preprocessing.size, preprocessing.size), generator=generator)
    if settings.initial == "noise":
        return images
    draw = np.random.default_rng(derive(seed, "distill", "real"))
    for index in range(len(source.classes)):
        rows, members = np.flatnonzero(source.labels == index), labels == index
        if len(rows):
            count = int(members.sum())
            chosen = draw.choice(rows, size=count, replace=len(rows) < count)
            images[members] = preprocessing.apply(source.images(chosen))
    return images


def pixel_bounds(preprocessing: Preprocessing) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """Returns what a black and a white pixel become: every real pixel lies between."""
    ends = np.stack([np.full((preprocessing.size, preprocessing.size, 3), value, np.uint8) for value in (0, 255)])
    black, white = preprocessing.apply(ends)[:, :, :1, :1]
    return black, white
