"""Build IR-SE-50, ArcFace's improved residual network with squeeze and excitation, in the layout of `ir_se50.pth`.

Source: Deng et al., ArcFace (arXiv:1801.07698), section 3.1: BN-Conv-[BN-]PReLU-Conv-BN units, 3 x 3 stem without
stride, and BN-Dropout-FC-BN after the last 7 x 7 map; squeeze and excitation by Hu et al. (arXiv:1709.01507).
The modules carry the names of the published weights: `input_layer.0.weight`, `body.<unit>.res_layer.<n>…`,
`output_layer.<n>…`. They expect 112 px crops on the ArcFace template. `iresnet` differs in two details.
"""

import math
from itertools import accumulate, pairwise

from jaxtyping import Float
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn

from fer_pipeline.networks.backbones import ARCFACE, Layout, has, leaving_out, run_stages
from fer_pipeline.networks.settings import NetworkSettings

NAMES = ("ir_se50",)
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units of the 50-layer network
NUM_FEATURES = 512


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    return {"arcface": Layout(ARCFACE, has("input_layer.0.weight", "output_layer.3.weight"), leaving_out("head."))}


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network for the input size of the settings (112 px where there is none)."""
    return ImprovedResidual(settings.size or 112, squeeze=True, norm_between=False, dropout=0.5)


class Unit(nn.Module):
    """Two convolutions and a shortcut; the second convolution has the stride."""

    def __init__(self, inner: int, outer: int, stride: int, *, squeeze: bool, norm_between: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if inner != outer or (norm_between and stride != 1):
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        layers: list[nn.Module] = [nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, 1, 1, bias=False)]
        layers += [nn.BatchNorm2d(outer)] if norm_between else []
        layers += [nn.PReLU(outer), nn.Conv2d(outer, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer)]
        layers += [SEModule(outer, rd_channels=outer // 16, bias=False)] if squeeze else []
        self.res_layer = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o h2 w2"]:
        return self.res_layer(x) + self.shortcut_layer(x)


class ImprovedResidual(nn.Module):
    """Fifty layers from a crop (112 px as published) to 512 features."""

    feature_dim = NUM_FEATURES
    stages = ("stage1", "stage2", "stage3", "stage4")

    def __init__(self, size: int, *, squeeze: bool, norm_between: bool, dropout: float) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.body = nn.Sequential()
        inner = 64
        for channels, count in STAGES:
            for stride in [2] + [1] * (count - 1):
                self.body.append(Unit(inner, channels, stride, squeeze=squeeze, norm_between=norm_between))
                inner = channels
        side = math.ceil(size / 2 ** len(STAGES))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inner),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(inner * side * side, NUM_FEATURES),
            nn.BatchNorm1d(NUM_FEATURES),
        )

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 512"]:
        return self.output_layer(self.body(self.input_layer(x)))

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        ends = list(accumulate(count for _, count in STAGES))
        parts = (self.body[start:end] for start, end in pairwise([0, *ends]))
        return run_stages(self.input_layer(x), zip(self.stages, parts, strict=True), last)
