"""The three MTCNN networks in torch: float images in, face probability, box regression (and landmarks) out.

Source: Zhang et al., arXiv:1604.02878, figure 2, in the layout of the `mtcnn` 1.0.0 package, whose weights they carry:
convolutions without padding, pools whose last window may be partial. Input is RGB, `(x - 127.5) / 128`. The parameters
are declared in the order of the weight files. Difference: the face probability is the logistic function of the
difference of the two logits, which is the soft-max of two classes. P-Net takes most of the time on a CPU, and torch is
slow on its ten channels: its first PReLU and pool are written so that vectors are long, and `proposals` runs the heads
where they matter.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fer_pipeline.alignment.weights import SHA256, Network, read_weights

ROUNDING = 1e-3  # far more than the logits of two ways to sum them differ


def _trunk(*stages: tuple[int, int, int, int]) -> nn.Sequential:
    """Stages of (channels in, channels out, kernel, pool or 0)."""
    layers: list[nn.Module] = []
    for inner, outer, kernel, pool in stages:
        layers += [nn.Conv2d(inner, outer, kernel), nn.PReLU(outer)]
        if pool:
            layers.append(nn.MaxPool2d(pool, stride=2, ceil_mode=True))
    return nn.Sequential(*layers)


def _flattened(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    return x.permute(0, 3, 2, 1).flatten(1)  # the dense weights were trained on (width, height, channel)


def face_direction(head: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one product whose logistic function is the face probability: [1 ...] and [1]."""
    assert head.bias is not None
    return head.weight.diff(dim=0), head.bias.diff()


def _probability(logits: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    return torch.sigmoid(logits[:, 1] - logits[:, 0])


class _RowPReLU(nn.PReLU):
    """A PReLU over whole rows of pixels at a time: 5 times as fast as torch's with few channels, last in memory."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        n, c, h, w = x.shape
        rows = F.prelu(x.permute(0, 2, 3, 1).reshape(n * h, w * c), self.weight.repeat(w))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class PairPool(nn.Module):
    """A 2 x 2 max-pool with partial last windows, as maxima of slices: 3 times as fast with few channels."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c y x"]:
        x = x.permute(0, 2, 3, 1)
        return _pair_maxima(_pair_maxima(x, dim=1), dim=2).permute(0, 3, 1, 2)


def _pair_maxima(x: Float[Tensor, "n h w c"], *, dim: int) -> Float[Tensor, "n y x c"]:
    size = x.shape[dim]
    out = x.new_empty([*x.shape[:dim], (size + 1) // 2, *x.shape[dim + 1 :]])
    even, odd = x[(slice(None),) * dim + (slice(0, None, 2),)], x[(slice(None),) * dim + (slice(1, None, 2),)]
    pairs = size // 2
    torch.maximum(even.narrow(dim, 0, pairs), odd, out=out.narrow(dim, 0, pairs))
    if size % 2:
        out.select(dim, -1).copy_(even.select(dim, -1))
    return out


class ProposalNet(nn.Module):
    """P-Net: a face probability and a box regression for every 12 x 12 cell at a stride of 2."""

    CELL = 12
    STRIDE = 2

    def __init__(self) -> None:
        super().__init__()
        first = (nn.Conv2d(3, 10, 3), _RowPReLU(10), PairPool())
        self.trunk = nn.Sequential(*first, *_trunk((10, 16, 3, 0), (16, 32, 3, 0)))
        self.box = nn.Conv2d(32, 4, 1)
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "n y x 4"]]:
        return self._heads(self.trunk(x).permute(0, 2, 3, 1))

    def proposals(
        self, x: Float[Tensor, "n 3 h w"], *, threshold: float
    ) -> tuple[Int64[Tensor, "k 3"], Float[Tensor, " k"], Float[Tensor, "k 4"]]:
        """The cells (picture, y, x) that pass the threshold, or are a rounding error below it, as `forward` sees them.

        One product judges a cell; the two heads, whose few columns make them slow, run on what is left.
        """
        x = self.trunk(x).permute(0, 2, 3, 1)
        weight, bias = face_direction(self.face)
        found = (x.matmul(weight.flatten()) + bias > math.log(threshold / (1 - threshold)) - ROUNDING).nonzero()
        rows = x[tuple(found.T)]
        if len(rows) == 1:  # one row alone would be summed in another order
            rows = rows.repeat(2, 1)
        faces, offsets = self._heads(rows)
        return found, faces[: len(found)], offsets[: len(found)]

    def _heads(self, x: Float[Tensor, "*n 32"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n 4"]]:
        logits = F.linear(x, self.face.weight.flatten(1), self.face.bias)
        return torch.sigmoid(logits[..., 1] - logits[..., 0]), F.linear(x, self.box.weight.flatten(1), self.box.bias)


class RefinementNet(nn.Module):
    """R-Net: a face probability and a box regression for every 24 x 24 crop."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk((3, 28, 3, 3), (28, 48, 3, 3), (48, 64, 2, 0))
        self.dense = nn.Sequential(nn.Linear(576, 128), nn.PReLU(128))
        self.box = nn.Linear(128, 4)
        self.face = nn.Linear(128, 2)

    def forward(self, x: Float[Tensor, "n 3 24 24"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 4"]]:
        x = self.dense(_flattened(self.trunk(x)))
        return _probability(self.face(x)), self.box(x)


class OutputNet(nn.Module):
    """O-Net: a face probability, a box regression and five landmarks (x1..x5, y1..y5) for every 48 x 48 crop."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = _trunk((3, 32, 3, 3), (32, 64, 3, 3), (64, 64, 3, 2), (64, 128, 2, 0))
        self.dense = nn.Sequential(nn.Linear(1152, 256), nn.PReLU(256))
        self.box = nn.Linear(256, 4)
        self.landmarks = nn.Linear(256, 10)
        self.face = nn.Linear(256, 2)

    def forward(
        self, x: Float[Tensor, "n 3 48 48"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 4"], Float[Tensor, "n 10"]]:
        x = self.dense(_flattened(self.trunk(x)))
        return _probability(self.face(x)), self.box(x), self.landmarks(x)


AnyNet = TypeVar("AnyNet", ProposalNet, RefinementNet, OutputNet)


@dataclass(frozen=True)
class Networks:
    """The cascade's three networks with their weights, ready for inference."""

    pnet: ProposalNet
    rnet: RefinementNet
    onet: OutputNet


def load_weights(*, device: str | torch.device = "cpu") -> Networks:
    """The three networks with the published weights."""
    return Networks(
        pnet=_loaded(ProposalNet(), "pnet", device),
        rnet=_loaded(RefinementNet(), "rnet", device),
        onet=_loaded(OutputNet(), "onet", device),
    )


def weights_hashes() -> dict[str, str]:
    """What the cached results of a detection depend on beside its settings."""
    return {str(network): digest for network, digest in SHA256.items()}


def _loaded(net: AnyNet, network: Network, device: str | torch.device) -> AnyNet:
    parameters = list(net.parameters())
    shapes = [_file_shape(parameter) for parameter in parameters]
    with torch.no_grad():
        for parameter, array in zip(parameters, read_weights(network, shapes), strict=True):
            parameter.copy_(torch.from_numpy(_in_torch_order(array)))
    net = net.requires_grad_(False).eval().to(device)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.2 to 2 times as fast on a CPU


def _file_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape in the file: HWIO for convolutions, (in, out) for dense weights."""
    shape = tuple(parameter.shape)
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _in_torch_order(array: np.ndarray) -> np.ndarray:
    return np.array(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T, order="C")  # a writable copy
