"""Augment whole batches: uint8 crops become randomly changed network inputs.

All amounts are drawn on the CPU by the given generator, so that a seed means the same on every device; the images are
worked on where they are. Order: shift and flip (on bytes, by one gather), rotation and zoom (bilinear, mirrored
border), contrast, brightness and saturation, grey, normalisation, erasing (with the mean colour).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional

from fer_pipeline.networks.preprocessing import Crops, Inputs, Preprocessing, pixels_of, to_grey
from fer_pipeline.training.settings import AugmentSettings


@dataclass(frozen=True)
class Augmentation:
    settings: AugmentSettings
    preprocessing: Preprocessing

    def plain(self, images: Crops) -> Inputs:
        return self.preprocessing.apply(images)

    def random(self, images: Crops, generator: Generator) -> Inputs:
        settings = self.settings
        if settings.flip or settings.translate:
            images = shift_and_flip(images, generator, translate=settings.translate, flip=settings.flip)
        pixels = self.preprocessing.resize(pixels_of(images))
        if settings.rotate or settings.zoom:
            pixels = turn_and_zoom(pixels, generator, degrees=settings.rotate, zoom=settings.zoom)
        if settings.contrast or settings.brightness or settings.saturation:
            pixels = change_colours(pixels, generator, settings)
        if settings.grey:
            chosen = _chance(len(pixels), settings.grey, generator, pixels.device)
            pixels = torch.where(chosen, to_grey(pixels), pixels)
        inputs = self.preprocessing.normalise(pixels)
        return erase(inputs, generator, settings) if settings.erase else inputs


def shift_and_flip(images: Crops, generator: Generator, *, translate: float, flip: float) -> Crops:
    """Whole-pixel shifts of up to `translate` times the side with a mirrored border, and horizontal flips."""
    count, height, width, _ = images.shape
    rows, columns = (_shifted(count, side, int(translate * side), generator) for side in (height, width))
    flipped = torch.rand(count, 1, generator=generator) < flip
    columns = torch.where(flipped, columns.flip(1), columns)
    base = torch.arange(count).view(-1, 1, 1) * (height * width)
    index = (base + (rows * width).unsqueeze(2) + columns.unsqueeze(1)).view(-1).to(images.device)
    return images.reshape(-1, 3).index_select(0, index).view(images.shape)


def turn_and_zoom(pixels: Inputs, generator: Generator, *, degrees: float, zoom: float) -> Inputs:
    """Rotations of up to `degrees` and scales between 1 - zoom and 1 + zoom about the centre."""
    angle = _between(len(pixels), math.radians(degrees), generator)
    scale = 1 + _between(len(pixels), zoom, generator)
    cosine, sine = ((part / scale).view(-1, 1, 1).to(pixels.device) for part in (torch.cos(angle), torch.sin(angle)))
    side = pixels.shape[-1]
    line = torch.linspace(-1, 1, side, device=pixels.device) * (side - 1) / side  # centres of pixels between the edges
    x, y = line.view(1, 1, side), line.view(1, side, 1)
    grid = torch.stack([x * cosine + y * -sine, x * sine + y * cosine], dim=3)  # affine_grid's numbers in half its time
    return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def change_colours(pixels: Inputs, generator: Generator, settings: AugmentSettings) -> Inputs:
    """Contrast about the image's mean grey, brightness, and saturation towards its own grey; clipped to 0 to 255."""
    count, device = len(pixels), pixels.device

    def factor(amount: float) -> Float[Tensor, "n 1 1 1"]:
        return (1 + _between(count, amount, generator)).view(-1, 1, 1, 1).to(device)

    if settings.contrast:
        middle = to_grey(pixels)[:, :1].mean((2, 3), keepdim=True)
        pixels = middle + (pixels - middle) * factor(settings.contrast)
    if settings.brightness:
        pixels = pixels * factor(settings.brightness)
    if settings.saturation:
        grey = to_grey(pixels)
        pixels = grey + (pixels - grey) * factor(settings.saturation)
    return pixels.clamp(0, 255)


def erase(inputs: Inputs, generator: Generator, settings: AugmentSettings) -> Inputs:
    """A random rectangle becomes 0, the mean colour (Zhong et al., arXiv:1708.04896; aspect between 0.3 and 3.3)."""
    count, side = len(inputs), inputs.shape[-1]
    low, high = settings.erase_area
    area = (low + (high - low) * torch.rand(count, generator=generator)) * side * side
    aspect = torch.exp((2 * torch.rand(count, generator=generator) - 1) * math.log(3.3))
    lengths = torch.sqrt(torch.stack([area * aspect, area / aspect])).clamp(1, side).round().unsqueeze(2)
    first = (torch.rand(2, count, 1, generator=generator) * (side - lengths + 1)).floor()
    rows, columns = (torch.arange(side) >= first) & (torch.arange(side) < first + lengths)
    inside = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1).to(inputs.device)
    chosen = _chance(count, settings.erase, generator, inputs.device)
    return inputs.masked_fill(inside & chosen, 0.0)


def _shifted(count: int, size: int, most: int, generator: Generator) -> Int[Tensor, "n k"]:
    index = torch.randint(-most, most + 1, (count, 1), generator=generator) + torch.arange(size)
    index = torch.where(index < 0, -1 - index, index)
    return torch.where(index >= size, 2 * size - 1 - index, index)


def _between(count: int, amount: float, generator: Generator) -> Float[Tensor, " n"]:
    return (2 * torch.rand(count, generator=generator) - 1) * amount


def _chance(count: int, probability: float, generator: Generator, device: torch.device) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).view(-1, 1, 1, 1).to(device)
