"""Convert uint8 RGB crops to a network's input space and back: place, size, grey, channel order, scale, mean and std.

The order is fixed: warp to the network's own template where it has one, or else resize; grey, channel order,
`x * scale`, `(x - mean) / std`; mean and std are in the order of the channels that the network sees. A checkpoint's
card carries its preprocessing, so no caller chooses one anew: another set's mean under the same weights is a silent
loss of accuracy.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from pydantic import Field, field_validator, model_serializer
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.settings import Settings

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow have it

ARCFACE_SIDE = 112  # pixels of the crop whose coordinates templates are written in
MAX_SIZE = 2048  # pixels: beyond any crop, and one image of it is still 50 MB
Triple = tuple[float, float, float]
Deviation = Annotated[float, Field(gt=0)]
Crops = UInt8[Tensor, "n h w 3"]  # RGB, as stored
Inputs = Float[Tensor, "n 3 s s"]  # of a network


class Template(Settings):
    """Where a set of weights expects the face, in a square of `side` pixels that is not our crop resized.

    `matrix` maps (x, y, 1) in an ArcFace crop of 112 px, whatever the stored size, to pixels of that square; pixel
    centres are on integers in both.
    """

    side: Annotated[int, Field(ge=8, le=MAX_SIZE)]
    matrix: tuple[Triple, Triple]

    @field_validator("matrix")
    @classmethod
    def _is_no_mirror_or_point(cls, matrix: tuple[Triple, Triple]) -> tuple[Triple, Triple]:
        (a, b, _), (c, d, _) = matrix
        if not 1e-2 < a * d - b * c < 1e4:
            raise ValueError("matrix must enlarge areas by 0.01 to 10,000 and mirror nothing")
        return matrix


class Normalisation(Settings):
    """How an aligned crop's pixels from 0 to 255 become the numbers that a set of weights was trained on."""

    mean: Triple = (0.5, 0.5, 0.5)
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    channels: Literal["rgb", "bgr"] = "rgb"
    scale: Annotated[float, Field(gt=0)] = 1 / 255
    template: Template | None = None  # null: the whole crop, resized

    @model_serializer(mode="wrap")
    def _leave_out_no_template(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Cards and keys of whatever needs none keep their bytes.
        values = dump(self)
        return {key: value for key, value in values.items() if key != "template" or value is not None}


class Preprocessing(Normalisation):
    """All that happens to an aligned crop before the first convolution."""

    size: Annotated[int, Field(ge=8, le=MAX_SIZE)]
    grey: bool = False

    def apply(self, images: UInt8[np.ndarray | Tensor, "n h w 3"]) -> Float[Tensor, "n 3 s s"]:
        """Converts crops to the network's input, on the device of the crops."""
        return self.normalise(self.resize(pixels_of(images)))

    def resize(self, pixels: Float[Tensor, "n 3 h w"], *, origin: Template | None = None) -> Float[Tensor, "n 3 s s"]:
        """Brings pixels to the network's template and size, antialiased where they shrink; untouched where they fit.

        `origin` is the template in which the pixels lie; null: they are an aligned crop.
        """
        if self.template != origin:
            return self._warp(pixels, _unit_matrix(origin) @ np.linalg.inv(_unit_matrix(self.template)))
        if pixels.shape[-2:] == (self.size, self.size):
            return pixels
        return functional.interpolate(
            pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
        )

    def _warp(self, pixels: Float[Tensor, "n 3 h w"], matrix: Float64[np.ndarray, "3 3"]) -> Float[Tensor, "n 3 s s"]:
        """Samples pixels where `matrix` maps ours, both from 0 to 1 between edges; what lies outside is the border."""
        shrink = math.sqrt(abs(np.linalg.det(matrix[:2, :2]))) * pixels.shape[-1] / self.size
        if shrink > 1:  # grid_sample looks at the nearest four pixels alone
            sides = [max(1, round(side / shrink)) for side in pixels.shape[-2:]]
            pixels = functional.interpolate(pixels, sides, mode="bilinear", align_corners=False, antialias=True)
        to_unit = np.array([[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])  # grid_sample's numbers lie between -1 and 1
        theta = torch.from_numpy((np.linalg.inv(to_unit) @ matrix @ to_unit)[:2]).to(pixels)
        grid = functional.affine_grid(theta[None], [1, 3, self.size, self.size], align_corners=False)
        grid = grid.expand(len(pixels), -1, -1, -1)
        return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)

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
        if origin == self:
            return inputs
        return self.normalise(self.resize(origin.undo(inputs), origin=origin.template))

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std], device=device).view(2, 1, 3, 1, 1)
        return mean, std


def _unit_matrix(template: Template | None) -> Float64[np.ndarray, "3 3"]:
    """Returns the matrix from an ArcFace crop to a template, both from 0 to 1 between their edges."""
    if template is None:
        return np.eye(3)
    crop = np.array([[ARCFACE_SIDE, 0, -0.5], [0, ARCFACE_SIDE, -0.5], [0, 0, 1]])
    own = np.array([[template.side, 0, -0.5], [0, template.side, -0.5], [0, 0, 1]])
    return np.linalg.inv(own) @ np.array([*template.matrix, (0, 0, 1)]) @ crop


def pixels_of(images: UInt8[np.ndarray | Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Converts stored crops to float pixels from 0 to 255; the memory stays channels-last, which a CPU prefers."""
    tensor = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    return tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.preserve_format)


def to_grey(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Puts the luma into all three channels, so that every backbone keeps its first layer."""
    weights = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(1, keepdim=True).expand_as(pixels)
