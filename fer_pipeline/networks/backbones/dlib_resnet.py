"""Build dlib's face network, a residual network of 29 convolutions whose batch norms are folded into plain affines.

Source: He et al. (arXiv:1512.03385) as dlib's `dnn_face_recognition_ex` changes it: half the filters, and shortcuts of
a halving block that are averaged and padded with zeros, at the bottom, at the right and in the channels. `dlib_resnet`
gives the 256 means of the last map; `dlib_resnet128` dlib's own output, 128 numbers of identity, which have discarded
most of an expression. Difference: weights that are drawn begin with small second affines, since without batch norms
every block would double the variance. Parameters are in the order of the published file.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import Layout, run_stages
from fer_pipeline.networks.settings import NetworkSettings

NAMES = ("dlib_resnet", "dlib_resnet128")
LAYERS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # channels and blocks; all but the first begin by halving
NUM_BLOCKS = sum(count for _, count in LAYERS)
IDENTITY_DIM = 128
SMALLEST = 103  # pixels, of which three are left before the last halving


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns none: the published file is no state of torch; it is read by its name, `weights: {name: dlib_face}`."""
    return {}


class Affine(nn.Module):
    """A scale and a shift for each channel: a batch norm with its statistics folded in."""

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut that has no weights; a halving one pads nothing before its stride."""

    def __init__(self, inner: int, outer: int, *, halving: bool) -> None:
        super().__init__()
        self.halving = halving
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=2 if halving else 1, padding=0 if halving else 1)
        self.affine1 = Affine(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.affine2 = Affine(outer, scale=NUM_BLOCKS**-0.5)

    def forward(self, x: Float[Tensor, "n i h w"]) -> Float[Tensor, "n o y x"]:
        y = functional.relu(self.affine1(self.conv1(x)))
        y = self.affine2(self.conv2(y))
        if self.halving:
            x = functional.avg_pool2d(x, 2)
            shape = [max(sides) for sides in zip(x.shape[1:], y.shape[1:], strict=True)]
            x, y = _pad(x, shape), _pad(y, shape)
        return functional.relu(x + y)


class DlibResnet(nn.Module):
    """A stem and five layers of blocks, averaged over the map; then dlib's projection, where `identity` is wanted."""

    stages = ("stem", "layer1", "layer2", "layer3", "layer4", "layer5")

    def __init__(self, *, identity: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, stride=2), Affine(32), nn.ReLU(), nn.MaxPool2d(3, stride=2))
        inner = 32
        for number, (outer, count) in enumerate(LAYERS, start=1):
            blocks = [Block(inner, outer, halving=number > 1)] + [
                Block(outer, outer, halving=False) for _ in range(count - 1)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inner = outer
        self.fc = nn.Linear(inner, IDENTITY_DIM, bias=False) if identity else nn.Identity()
        self.feature_dim = IDENTITY_DIM if identity else inner
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def feature_maps(self, x: Float[Tensor, "n 3 h w"], last: str | None = None) -> dict[str, Tensor]:
        """Computes the map [n c h w] after every stage, up to `last`."""
        return run_stages(x, ((stage, self.get_submodule(stage)) for stage in self.stages), last)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.fc(self.feature_maps(x)[self.stages[-1]].mean((2, 3)))


def _pad(x: Float[Tensor, "n i h w"], shape: list[int]) -> Float[Tensor, "n o y x"]:
    channels, height, width = (wanted - found for wanted, found in zip(shape, x.shape[1:], strict=True))
    return functional.pad(x, (0, width, 0, height, 0, channels))


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network; a ConfigError for pictures that vanish before its last halving."""
    if settings.size is not None and settings.size < SMALLEST:
        raise ConfigError(
            f"{settings.name} takes pictures of at least {SMALLEST} px, found {settings.size}; set network.size"
        )
    return DlibResnet(identity=settings.name == "dlib_resnet128")
