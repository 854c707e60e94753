"""Pixels for the networks: pictures as bytes in, shrunken pictures and square crops as normalised floats out.

Difference from the paper's ports, which average over areas: a triangle filter with the support of the scale (torch's
antialiased bilinear), which has a vectorised integer kernel on CPUs: five times as fast, and the same faces are found.
Elsewhere the same filter runs in floats and is rounded, since the kernel for bytes exists on CPUs only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

CELL = 12  # pixels of the smallest face that P-Net sees


def pyramid_scales(height: int, width: int, *, min_face: int, factor: float) -> list[float]:
    """Scales from the one that makes the smallest wanted face one cell, down to where the picture is one cell."""
    scale = CELL / min_face
    found = []
    while min(height, width) * scale >= CELL:
        found.append(scale)
        scale *= factor
    return found


def normalised(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """The networks' input: `(x - 127.5) / 128`."""
    return images.float().sub_(127.5).mul_(1 / 128)


def resized(images: UInt8[Tensor, "n 3 h w"], *, height: int, width: int) -> UInt8[Tensor, "n 3 {height} {width}"]:
    """Pictures resized with antialiasing; the memory stays channels last."""
    if images.shape[2:] == (height, width):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    floats = F.interpolate(images.float(), size=(height, width), mode="bilinear", antialias=True)
    return floats.round_().clamp_(0, 255).to(torch.uint8)


def square_crops(
    images: Sequence[UInt8[Tensor, "_ _ 3"]], image: Int64[Tensor, " n"], boxes: Float[Tensor, "n 4"], *, size: int
) -> Float[Tensor, "n 3 {size} {size}"]:
    """Square boxes on whole pixels, cut out of the pictures that `image` tells and resized; black outside the frame."""
    out = torch.empty((len(boxes), 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    out = out.to(images[0].device) if images else out
    for row, (source, box) in enumerate(zip(image.tolist(), boxes.long().tolist(), strict=True)):
        out[row] = resized(_cut(images[source].permute(2, 0, 1), *box)[None], height=size, width=size)[0]
    return normalised(out)


def _cut(image: UInt8[Tensor, "3 h w"], x1: int, y1: int, x2: int, y2: int) -> UInt8[Tensor, "3 y x"]:
    height, width = image.shape[1:]
    inner = image[:, max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
        return inner
    left, top = max(-x1, 0), max(-y1, 0)
    canvas = image.new_zeros((y2 - y1, x2 - x1, 3)).permute(2, 0, 1)
    canvas[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return canvas
