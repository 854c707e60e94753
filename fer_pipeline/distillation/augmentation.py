"""Augment network inputs so that gradients pass through, equally for all images of one group.

Source: differentiable siamese augmentation (Zhao & Bilen, ICML 2021, arXiv:2102.08259, eq. 4): real and synthetic
images that are compared with each other go through the very same random change. Differences: all changes are made each
time (there one of them is drawn), in one resampling; borders are mirrored; no change of saturation.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from fer_pipeline.distillation.settings import AugmentSettings


def augment(
    images: Float[Tensor, "n 3 h w"],
    groups: Int[Tensor, " n"],
    settings: AugmentSettings,
    generator: Generator,
    count: int,
) -> Float[Tensor, "n 3 h w"]:
    """Flips, turns, zooms, shifts, changes contrast and brightness, and cuts out a square: alike within a group.

    All amounts are drawn on the CPU, for each of `count` groups whether it has an image or not, so that a generator in
    the same state gives a group the same change wherever it stands.
    """
    groups = groups.cpu()

    def between(amount: float) -> Float[Tensor, " g"]:
        return (2 * torch.rand(count, generator=generator) - 1) * amount

    flip = torch.where(torch.rand(count, generator=generator) < settings.flip, -1.0, 1.0)
    angle, scale = between(math.radians(settings.rotate)), 1 + between(settings.zoom)
    right, down = between(2 * settings.translate), between(2 * settings.translate)  # the side is 2 long there
    contrast, brightness = 1 + between(settings.contrast), between(settings.brightness)
    corner = torch.rand(2, count, generator=generator)
    device = images.device
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([cosine * flip, -sine, right, sine * flip, cosine, down], 1).view(-1, 2, 3)[groups].to(device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    middle = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (one[groups].view(-1, 1, 1, 1).to(device) for one in (contrast, brightness))
    images = middle + (images - middle) * contrast + brightness
    if side := round(settings.cutout * images.shape[-1]):
        first = (corner * (images.shape[-1] - side + 1)).floor()[:, groups].unsqueeze(2)
        line = torch.arange(images.shape[-1])
        rows, columns = (line >= first) & (line < first + side)
        inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1).to(device)
        images = images.masked_fill(inside, 0.0)
    return images
