"""Build a small residual network for CPU demos: at 48 px and width 16 about 10 million FLOPs and 128 features.

Source: the basic block of He et al. (arXiv:1512.03385) twice, after two plain convolutions; four halvings, so that 48
px end at 3 x 3.
`norm: group` (Wu & He, arXiv:1803.08494) has no running statistics, as distillation from random weights needs.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.networks.backbones import Layout, run_stages
from fer_pipeline.networks.settings import NetworkSettings


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns none: nobody publishes weights of this network; our own checkpoints fit every family."""
    return {}


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(4, channels)


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut; the first halves the map where `stride` is 2."""

    def __init__(self, inner: int, outer: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outer)
        self.shortcut = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), _norm(norm, outer))

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Small(nn.Module):
    """Two convolutions and two blocks of `width` times 1, 2, 4 and 8 channels, averaged over the map."""

    stages = ("stage1", "stage2", "stage3", "stage4")  # one for each halving

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.feature_dim = 8 * width
        self.stem = nn.Sequential()
        for inner, outer in pairwise((3, width, 2 * width)):
            self.stem.extend([nn.Conv2d(inner, outer, 3, 2, 1, bias=False), _norm(norm, outer), nn.ReLU()])
        self.blocks = nn.Sequential(*(Block(n * width, 2 * n * width, stride=2, norm=norm) for n in (2, 4)))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.blocks(self.stem(x)).mean((2, 3))

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        return run_stages(x, zip(self.stages, (self.stem[:3], self.stem[3:], *self.blocks), strict=True), last)


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network; widths are multiples of 4, as the groups need."""
    return Small(settings.width - settings.width % 4, settings.norm)
