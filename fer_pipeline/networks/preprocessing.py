"""Convert uint8 RGB crops to a network's input space and back: size, grey, channel order, scale, mean and deviation.

The order is fixed: resize, grey, channel order, `x * scale`, `(x - mean) / std`; mean and std are in the order of the
channels that the network sees. A checkpoint's card carries its preprocessing, so no caller chooses one anew: another
set's mean under the same weights is a silent loss of accuracy.
"""

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.settings import Settings

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow have it

MAX_SIZE = 2048  # pixels: beyond any crop, and one image of it is still 50 MB
Triple = tuple[float, float, float]
Deviation = Annotated[float, Field(gt=0)]
Crops = UInt8[Tensor, "n h w 3"]  # RGB, as stored
Inputs = Float[Tensor, "n 3 s s"]  # of a network


class Normalisation(Settings):
    """How pixels from 0 to 255 become the numbers that a set of weights was trained on."""

    mean: Triple = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Annotated[float, Field(gt=0)] = 1 / 255


class Preprocessing(Normalisation):
    """All that happens to an aligned crop before the first convolution."""

    size: Annotated[int, Field(ge=8, le=MAX_SIZE)]
    grey: bool = False

    def apply(self, images: UInt8[np.ndarray | Tensor, "n h w 3"]) -> Float[Tensor, "n 3 s s"]:
        """Converts crops to the network's input, on the device of the crops."""
        return self.normalise(self.resize(pixels_of(images)))

    def resize(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
        """Resizes pixels to the network's size, antialiased where they shrink; untouched where they fit."""
        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        return functional.interpolate(
            pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )

    def normalise(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Converts RGB pixels from 0 to 255 to the network's input space."""
        pixels = to_grey(pixels) if self.grey else pixels
        pixels = pixels.flip(1) if self.channels == "bgr" else pixels
        if len({*self.mean}) == len({*self.std}) == 1:  # plain numbers cost a fifth of a broadcast over channels
            return pixels * (self.scale / self.std[0]) - self.mean[0] / self.std[0]
        mean, std = self._constants(pixels.device)
        return torch.addcmul(-mean / std, pixels, self.scale / std)

    def restore(self, inputs: Float[Tensor, "n 3 s s"]) -> UInt8[Tensor, "n s s 3"]:
        """Converts network inputs to RGB pixels for a person's eye; what lies outside 0 to 255 is clipped."""
        pixels = self.undo(inputs.detach().float())
        return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def undo(self, inputs: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
        """Converts network inputs to RGB pixels without clipping: the inverse of `normalise`, but for grey."""
        mean, std = self._constants(inputs.device)
        pixels = (inputs * std + mean) / self.scale
        return pixels.flip(1) if self.channels == "bgr" else pixels

    def convert(self, inputs: Float[Tensor, "n 3 t t"], origin: "Preprocessing") -> Float[Tensor, "n 3 s s"]:
        """Converts inputs of another network (`origin`'s preprocessing) to this one's; untouched where both agree."""
        return inputs if origin == self else self.normalise(self.resize(origin.undo(inputs)))

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], device=device).view(2, 1, 3, 1, 1)
        return mean, std


def pixels_of(images: UInt8[np.ndarray | Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Converts stored crops to float pixels from 0 to 255; the memory stays channels-last, which a CPU prefers."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.preserve_format)


def to_grey(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Puts the luma into all three channels, so that every backbone keeps its first layer."""
    weights = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).expand_as(pixels)
