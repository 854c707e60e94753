"""Build backbones, one file a family. A network's name begins with its family: `resnet34` is built by `resnet.py`.

A family has `build(settings) -> nn.Module` (features [n d], attribute `feature_dim`) and `layouts(settings)`, the
published layouts of weights that fit it; `NAMES` where it has only certain networks. A new family is a new file.
"""

import re
from types import ModuleType

import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.settings import NetworkSettings


def family(name: str) -> ModuleType:
    """Loads the module of the family that a network's name begins with; a name unknown to it is a ConfigError."""
    match = re.match(r"[a-z_]+", name)
    module = load(__name__, match.group() if match else name)
    names = getattr(module, "NAMES", (name,))
    if name not in names:
        raise ConfigError(f"unknown network {name!r}; of this family there are {', '.join(names)}")
    return module


def build(settings: NetworkSettings, num_classes: int, seed: int) -> ExpressionNet:
    """Builds a network with weights drawn from `seed`, on the CPU in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        options = settings.model_dump(include={"feature_dim", "dropout"})
        backbone = family(settings.name).build(settings)
        return ExpressionNet(backbone, num_classes, **options).requires_grad_(True)
