"""Build the expression net of FaceNet2ExpNet: five convolutions and a bridge, whose whole map is the features.

Source: Ding, Zhou & Chellappa (FG 2017), section III B: five times a 3 x 3 convolution with ReLU and a 3 x 3 max-pool
of stride 2, with 64, 128, 256, 512 and 512 channels, then a 1 x 1 convolution that bridges the domains of faces and
expressions. The pools round up, as Caffe's do, so that 224 px end at 7 x 7, the map of VGG-16's last pool: 25,088
features. With `network: {name: expnet, size: 224, feature_dim: 256, dropout: 0.5}` and seven classes the network has
10,598,023 parameters, of which the paper says 11 M. It does not say how the convolutions are drawn: here as He et al.
(arXiv:1502.01852).
"""

import math
from itertools import pairwise
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import Layout, run_stages
from fer_pipeline.networks.settings import NetworkSettings

CHANNELS = (3, 64, 128, 256, 512, 512)
SMALLEST = 32  # pixels, of which two are left before the last pool


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns none: the authors published a model of Caffe's; our own checkpoints fit every family."""
    return {}


class ExpNet(nn.Module):
    """The convolutions and the bridge; `side` is that of the input."""

    stages = ("stage1", "stage2", "stage3", "stage4", "stage5", "bridge")

    def __init__(self, side: int) -> None:
        super().__init__()
        for _ in range(len(CHANNELS) - 1):
            side = math.ceil((side - 3) / 2) + 1
        self.feature_dim = CHANNELS[-1] * side**2
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(*pair, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
            for pair in pairwise(CHANNELS)
        )
        self.bridge = nn.Conv2d(CHANNELS[-1], CHANNELS[-1], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(cast(Tensor, module.bias), 0)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.feature_maps(x)["bridge"].flatten(1)

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        return run_stages(x, zip(self.stages, (*self.blocks, self.bridge), strict=True), last)


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network for its size of input, which the layer after it is made for."""
    assert settings.size is not None, "call sized() first"
    if settings.size < SMALLEST:
        raise ConfigError(f"expnet wants images of at least {SMALLEST} px, found {settings.size}; set network.size")
    return ExpNet(settings.size)
