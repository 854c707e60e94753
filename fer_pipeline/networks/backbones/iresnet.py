"""Build IResNet-50, ArcFace's improved residual network as InsightFace trains it, in the layout of `backbone.pth`.

Source: Deng et al. (arXiv:1801.07698); the published weights name their tensors `conv1`, `layer<s>.<b>.bn1`, `fc`,
`features`. Against IR-SE-50 a unit has one more batch norm between its convolutions and no squeeze and excitation.
"""

import re

from torch import nn

from fer_pipeline.networks.backbones import ARCFACE, Layout, has
from fer_pipeline.networks.backbones.ir_se import STAGES, ImprovedResidual
from fer_pipeline.networks.settings import NetworkSettings

NAMES = ("iresnet50",)

_FIRST_UNIT = {stage + 1: sum(count for _, count in STAGES[:stage]) for stage in range(4)}
_IN_UNIT = {"bn1": "0", "conv1": "1", "bn2": "2", "prelu": "3", "conv2": "4", "bn3": "5"}
_AROUND = {"conv1": "input_layer.0", "bn1": "input_layer.1", "prelu": "input_layer.2"}
_AROUND |= {"bn2": "output_layer.0", "fc": "output_layer.3", "features": "output_layer.4"}


def _rename(name: str) -> str | None:
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(?:(downsample\.\d)|(\w+))\.(\w+)", name):
        unit = f"body.{_FIRST_UNIT[int(match[1])] + int(match[2])}"
        if match[3]:
            return f"{unit}.{match[3].replace('downsample', 'shortcut_layer')}.{match[5]}"
        return f"{unit}.res_layer.{_IN_UNIT.get(match[4], match[4])}.{match[5]}"
    first, _, rest = name.partition(".")
    return f"{_AROUND[first]}.{rest}" if first in _AROUND else name


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    return {"arcface": Layout(ARCFACE, has("layer1.0.bn1.weight", "features.weight", "fc.weight"), _rename)}


def build(settings: NetworkSettings) -> nn.Module:
    return ImprovedResidual(settings.size or 112, squeeze=False, norm_between=True, dropout=0.0)
