"""IR-SE-50: ArcFace's improved residual network with squeeze and excitation, in the layout of `ir_se50.pth`.

Source: Deng et al. (arXiv:1801.07698); the published weights name their tensors `input_layer.0.weight`,
`body.<unit>.res_layer.<n>…`, `output_layer.<n>…`. They expect 112 px crops on the ArcFace template.
"""

from torch import nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones._improved_residual import ImprovedResidual
from fer_pipeline.networks.layouts import ARCFACE, Layout, has, leaving_out
from fer_pipeline.networks.settings import NetworkSettings


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """The published layouts of this family's weights."""
    return {"arcface": Layout(ARCFACE, has("input_layer.0.weight", "output_layer.3.weight"), leaving_out("head."))}


def build(settings: NetworkSettings) -> nn.Module:
    """The network for the input size of the settings (112 px where none is said)."""
    if settings.name != "ir_se50":
        raise ConfigError(f"unknown network {settings.name!r}; of this family there is ir_se50")
    return ImprovedResidual(settings.size or 112, squeeze=True, norm_between=False, dropout=0.5)
