"""One file a family of backbones. A network's name begins with its family: `resnet34` is built by `resnet.py`.

A family has `build(settings) -> nn.Module` (features [n d], attribute `feature_dim`) and `layouts(settings)`, the
published layouts of weights that fit it. A new family is a new file.
"""

import re
from types import ModuleType

import torch

from fer_pipeline.core.plugins import load
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.settings import NetworkSettings


def family(name: str) -> ModuleType:
    """The module of the family that a network's name begins with."""
    match = re.match(r"[a-z_]+", name)
    return load(__name__, match.group() if match else name)


def build(settings: NetworkSettings, num_classes: int, seed: int) -> ExpressionNet:
    """A network with weights drawn from `seed`, on the CPU in training mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        backbone = family(settings.name).build(settings)
        return ExpressionNet(
            backbone, num_classes, feature_dim=settings.feature_dim, dropout=settings.dropout
        ).requires_grad_(True)
