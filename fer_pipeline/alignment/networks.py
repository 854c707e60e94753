"""Define the three MTCNN networks in torch and load their published weights.

Source: Zhang et al., arXiv:1604.02878, figure 2, in the layout of the `mtcnn` 1.0.0 package, whose weights they carry:
convolutions without padding, pools whose last window may be partial. Input is RGB, `(x - 127.5) / 128`; outputs are a
face probability, a box regression and, of O-Net, landmarks. The parameters are declared in the order of the weight
files. Difference: the face probability is the logistic function of the difference of the two logits, which is the
soft-max of two classes. P-Net takes most of the time on a CPU, and torch is slow on its ten channels: its first PReLU
and pool are written so that vectors are long, and `propose` runs the heads where they matter.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fer_pipeline.alignment.weights import Network, read_weights

ROUNDING = 1e-3  # far more than the logits of two ways to sum them differ


def _trunk(*stages: tuple[int, int, int, int]) -> nn.Sequential:
    """Builds stages of (channels in, channels out, kernel, pool or 0)."""
    layers: list[nn.Module] = []
    for inner, outer, kernel, pool in stages:
        layers += [nn.Conv2d(inner, outer, kernel), nn.PReLU(outer)]
        if pool:
            layers.append(nn.MaxPool2d(pool, stride=2, ceil_mode=True))
    return nn.Sequential(*layers)


def face_logit(head: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Returns weight [1 …] and bias [1] of the one product whose logistic function is the face probability."""
    assert head.bias is not None
    return head.weight.diff(dim=0), head.bias.diff()


def _face_probability(logits: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    return torch.sigmoid(logits[..., 1] - logits[..., 0])


class _RowPReLU(nn.PReLU):
    """A PReLU over whole rows of pixels at a time: 5 times as fast as torch's with few channels, last in memory."""

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        n, c, h, w = x.shape
        rows = F.prelu(x.permute(0, 2, 3, 1).reshape(n * h, w * c), self.weight.repeat(w))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


class MaxPool2x2(nn.Module):
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

    STRIDE = 2

    def __init__(self) -> None:
        super().__init__()
        first = (nn.Conv2d(3, 10, 3), _RowPReLU(10), MaxPool2x2())
        self.trunk = nn.Sequential(*first, *_trunk((10, 16, 3, 0), (16, 32, 3, 0)))
        self.box = nn.Conv2d(32, 4, 1)
        self.face = nn.Conv2d(32, 2, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n y x"], Float[Tensor, "n y x 4"]]:
        return self._heads(self.trunk(x).permute(0, 2, 3, 1))

    def propose(
        self, x: Float[Tensor, "n 3 h w"], *, threshold: float
    ) -> tuple[Int64[Tensor, "k 3"], Float[Tensor, " k"], Float[Tensor, "k 4"]]:
        """Returns the cells (picture, y, x) that pass the threshold, or are a rounding error below it, as in `forward`.

        One product judges a cell; the two heads, whose few columns make them slow, run on what is left.
        """
        x = self.trunk(x).permute(0, 2, 3, 1)
        weight, bias = face_logit(self.face)
        cells = (x.matmul(weight.flatten()) + bias > math.log(threshold / (1 - threshold)) - ROUNDING).nonzero()
        rows = x[tuple(cells.T)]
        if len(rows) == 1:  # one row alone would be summed in another order
            rows = rows.repeat(2, 1)
        faces, offsets = self._heads(rows)
        return cells, faces[: len(cells)], offsets[: len(cells)]

    def _heads(self, x: Float[Tensor, "*n 32"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n 4"]]:
        logits = F.linear(x, self.face.weight.flatten(1), self.face.bias)
        return _face_probability(logits), F.linear(x, self.box.weight.flatten(1), self.box.bias)


class CropNet(nn.Module):
    """R-Net and O-Net: a face probability, a box regression (and landmarks x1..x5, y1..y5) for every square crop."""

    def __init__(self, trunk: nn.Sequential, *, size: int, inputs: int, hidden: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.trunk = trunk
        self.dense = nn.Sequential(nn.Linear(inputs, hidden), nn.PReLU(hidden))
        self.regressions = nn.ModuleList(nn.Linear(hidden, output) for output in outputs)
        self.face = nn.Linear(hidden, 2)

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> tuple[Float[Tensor, "n ..."], ...]:
        # The dense weights were trained on (width, height, channel).
        x = self.dense(self.trunk(x).permute(0, 3, 2, 1).flatten(1))
        return _face_probability(self.face(x)), *(head(x) for head in self.regressions)


class Mtcnn(NamedTuple):
    """The cascade's three networks, as torch modules or as what another engine runs in the same way."""

    pnet: Any
    rnet: Any
    onet: Any


def load_mtcnn(*, device: str | torch.device = "cpu") -> Mtcnn:
    """Loads the three networks with the published weights, ready for inference."""
    small = _trunk((3, 28, 3, 3), (28, 48, 3, 3), (48, 64, 2, 0))
    large = _trunk((3, 32, 3, 3), (32, 64, 3, 3), (64, 64, 3, 2), (64, 128, 2, 0))
    networks: dict[Network, nn.Module] = {
        "pnet": ProposalNet(),
        "rnet": CropNet(small, size=24, inputs=576, hidden=128, outputs=(4,)),
        "onet": CropNet(large, size=48, inputs=1152, hidden=256, outputs=(4, 10)),
    }
    for name, network in networks.items():
        with torch.no_grad():
            for parameter, array in zip(network.parameters(), read_weights(name), strict=True):
                # Convolutions are HWIO in the file, dense weights (in, out).
                ordered = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
                parameter.copy_(torch.from_numpy(np.array(ordered, order="C")).view_as(parameter))
        network.requires_grad_(False).eval().to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.2 to 2 times as fast on a CPU
    return Mtcnn(**networks)
