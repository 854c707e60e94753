"""Build backbones, one file a family. A network's name begins with its family: `resnet34` is built by `resnet.py`.

A family has `build(settings) -> nn.Module` (features [n d], attribute `feature_dim`) and `layouts(settings)`, the
published layouts of weights that fit it; `NAMES` where it has only certain networks. A new family is a new file.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType

import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Normalisation
from fer_pipeline.networks.settings import NetworkSettings

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
ARCFACE = Normalisation(mean=(127.5, 127.5, 127.5), std=(128.0, 128.0, 128.0), scale=1.0)


@dataclass(frozen=True)
class Layout:
    """One way to publish a family's weights.

    `rename` maps a name in the file to a name in our backbone, or None for what we know and leave out (the old head).
    """

    normalisation: Normalisation
    recognises: Callable[[Collection[str]], bool]
    rename: Callable[[str], str | None]


def has(*names: str) -> Callable[[Collection[str]], bool]:
    """Recognises a file by names that only this layout has."""
    return lambda keys: all(name in keys for name in names)


def leaving_out(*prefixes: str) -> Callable[[str], str | None]:
    """Keeps all names but those of the old head."""
    return lambda name: None if name.startswith(prefixes) else name


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
