"""Read weights that TensorFlow.js publishes, and pad and convolve as TensorFlow does.

A manifest of TensorFlow.js lists tensors in the order of the bytes: float32, or uint8 with `scale` and `min`, of which
a number is `byte * scale + min`. Convolutions are stored [rows columns in out], depthwise ones [rows columns channels
1]. Padding "same" puts the odd pixel at the bottom and at the right.
"""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.documents import parse_json
from fer_pipeline.core.errors import DataError
from fer_pipeline.networks.pretrained import Contents


def read_manifest(contents: Contents, manifest: str) -> dict[str, Tensor]:
    """Returns the tensors of a manifest, or of a graph with one, whose bytes are in one file, by their names there."""
    document: Any = parse_json(contents[manifest])
    (group,) = document["weightsManifest"] if isinstance(document, dict) else document
    (shard,) = group["paths"]
    data, place, tensors = contents[PurePosixPath(shard).name], 0, dict[str, Tensor]()
    for one in group["weights"]:
        how = one.get("quantization")
        kind = np.dtype(how["dtype"] if how else one["dtype"]).newbyteorder("<")
        count = int(np.prod(one["shape"]))
        array = np.frombuffer(data, kind, count, place).reshape(one["shape"])
        place += array.nbytes
        if how:
            array = array.astype(np.float32) * np.float32(how["scale"]) + np.float32(how["min"])
        tensors[one["name"]] = torch.from_numpy(array.astype(kind.newbyteorder("=") if not how else np.float32))
    if place != len(data):
        raise DataError(f"{shard} has {len(data):,} bytes, but {manifest} lists {place:,}; install it again")
    return tensors


def pad_same(x: Float[Tensor, "n c h w"], kernel: int, stride: int, value: float = 0.0) -> Float[Tensor, "n c y x"]:
    """Pads as TensorFlow's "same" does before a kernel and stride."""
    lacking = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x.shape[3], x.shape[2])]
    sides = [part for total in lacking for part in (total // 2, total - total // 2)]
    return functional.pad(x, sides, value=value)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding "same"."""

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        return super().forward(pad_same(x, self.kernel_size[0], self.stride[0]))


class SeparableConv2d(nn.Sequential):
    """A depthwise 3 x 3 convolution without biases, then a pointwise one with them."""

    def __init__(self, inner: int, outer: int, *, stride: int = 1) -> None:
        depthwise = SameConv2d(inner, inner, 3, stride, groups=inner, bias=False)
        super().__init__(depthwise, nn.Conv2d(inner, outer, 1))


def fill(network: nn.Module, arrays: list[Tensor]) -> None:
    """Fills the parameters, in their order, with tensors as TensorFlow stores them."""
    with torch.no_grad():
        for parameter, array in zip(network.parameters(), arrays, strict=True):
            if array.ndim == 4:  # depthwise kernels have their channels where others have inputs
                depthwise = array.shape[3] == 1 and array.shape[2] == parameter.shape[0]
                array = array.permute(2, 3, 0, 1) if depthwise else array.permute(3, 2, 0, 1)
            elif array.ndim == 2:
                array = array.T
            if array.shape != parameter.shape:
                raise DataError(f"a tensor has the shape {tuple(array.shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(array)
