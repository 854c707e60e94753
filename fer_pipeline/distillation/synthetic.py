"""The synthetic images and their step sizes: settings in, the tensors that the outer optimiser moves out.

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
    """What is learned. The tensors are changed in place by the outer optimiser."""

    images: Tensor  # [steps n 3 h w], normalised
    raw_sizes: Tensor  # [steps]
    labels: Tensor  # [steps n], fixed

    @property
    def step_sizes(self) -> Float[Tensor, " steps"]:
        """The positive step sizes."""
        return functional.softplus(self.raw_sizes.detach())

    def size_slope(self) -> Float[Tensor, " steps"]:
        """d(step size)/d(free number)."""
        return torch.sigmoid(self.raw_sizes.detach())


def inverse_softplus(size: float) -> float:
    """The number whose softplus is `size`."""
    return size + float(np.log(-np.expm1(-size)))


def fixed_labels(*, steps: int, classes: int, per_class: int) -> Int[Tensor, "steps n"]:
    """Class 0 `per_class` times, then class 1, …: the same in every step."""
    return torch.arange(classes).repeat_interleave(per_class).expand(steps, -1).contiguous()


def initial_images(
    settings: DistillSettings,
    source: Source,
    preprocessing: Preprocessing,
    labels: Int[Tensor, "steps n"],
    *,
    seed: int,
) -> Float[Tensor, "steps n 3 h w"]:
    """Noise, or real images of the right class drawn from the source; a class without any starts as noise."""
    generator = torch.Generator().manual_seed(derive(seed, "distill", "noise"))
    side = preprocessing.size
    images = torch.randn((*labels.shape, 3, side, side), generator=generator)
    if settings.initial == "noise":
        return images
    draw = np.random.default_rng(derive(seed, "distill", "real"))
    for index in range(len(source.classes)):
        rows = np.flatnonzero(source.labels == index)
        places = (labels == index).nonzero()
        if len(rows) == 0:
            continue
        chosen = draw.choice(rows, size=len(places), replace=len(rows) < len(places))
        real = preprocessing.apply(source.images(chosen))
        images[places[:, 0], places[:, 1]] = real
    return images


def start_synthetic(
    settings: DistillSettings, source: Source, preprocessing: Preprocessing, *, seed: int, device: torch.device
) -> Synthetic:
    """The tensors before the first outer step."""
    labels = fixed_labels(steps=settings.steps, classes=len(source.classes), per_class=settings.per_class)
    images = initial_images(settings, source, preprocessing, labels, seed=seed)
    sizes = torch.full((settings.steps,), inverse_softplus(settings.step_size))
    return Synthetic(images=images.to(device), raw_sizes=sizes.to(device), labels=labels.to(device))


def pixel_bounds(preprocessing: Preprocessing) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What a black and a white pixel become: every real pixel lies between."""
    ends = np.stack([np.full((preprocessing.size, preprocessing.size, 3), value, np.uint8) for value in (0, 255)])
    black, white = preprocessing.apply(ends)[:, :, :1, :1]
    return black, white
