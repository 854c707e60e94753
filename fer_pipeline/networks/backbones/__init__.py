"""Build backbones, one file a family. A network's name begins with its family: `resnet34` is built by `resnet.py`.

A family has `build(settings) -> nn.Module` and `layouts(settings)`, the published layouts of weights that fit it;
`NAMES` where it has only certain networks. A new family is a new file. The module turns images into features [n d] and
has the attributes `feature_dim` and `stages`, the names of its stages from first to last, and the method
`feature_maps(x, last=None)`, which returns the map [n c h w] of each stage up to `last`, and computes no later one.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.model import ExpressionNet, stages_of
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


def run_stages(
    x: Float[Tensor, "n i h w"], parts: Iterable[tuple[str, nn.Module]], last: str | None
) -> dict[str, Float[Tensor, "_ _ _ _"]]:
    """Runs the named parts of a network one after the other, up to `last`, and returns the map of each."""
    maps: dict[str, Tensor] = {}
    for name, part in parts:
        maps[name] = x = part(x)
        if name == last:
            break
    return maps


def stage_shapes(settings: NetworkSettings) -> dict[str, tuple[int, int, int]]:
    """Returns the channels, rows and columns of the map of every stage, without computing one."""
    assert settings.size is not None, "call sized() first"
    plain = settings.model_dump_json(include={"name", "size", "width", "norm"})
    return dict(_stage_shapes(plain))


@cache
def _stage_shapes(plain: str) -> dict[str, tuple[int, int, int]]:
    settings = NetworkSettings.model_validate_json(plain)
    size = settings.size or 0

    def shapes(device: str) -> dict[str, tuple[int, int, int]]:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), torch.device(device):
            backbone = family(settings.name).build(settings).eval()
            if not stages_of(backbone):
                return {}
            maps = cast(Any, backbone).feature_maps(torch.zeros(1, 3, size, size))
            return {name: tuple(one.shape[1:]) for name, one in maps.items()}

    try:
        return shapes("meta")
    except (NotImplementedError, RuntimeError):  # a network of timm's may compute with its numbers
        try:
            return shapes("cpu")
        except Exception as error:  # or take certain sizes only, and raise whatever it likes at others
            line = f"{settings.name} cannot run at {settings.size} px ({one_line(error, 120)}); choose another size"
            raise ConfigError(line) from None


def check_stages(settings: NetworkSettings, names: Iterable[str], *, where: str) -> dict[str, tuple[int, int, int]]:
    """Returns the shape of every stage of a sized network; ConfigError where it lacks one of the names."""
    shapes = stage_shapes(settings)
    for name in names:
        if name not in shapes:
            known = f"there are {', '.join(shapes)}" if shapes else "it has none; leave the setting out"
            raise ConfigError(f"{where}: {settings.name} has no stage {name!r}; {known}")
    return shapes


def pooled_widths(settings: NetworkSettings, grids: Mapping[str, int], *, where: str) -> list[int]:
    """Returns how many features each of these grids gives, in the network's order.

    ConfigError for an unknown stage or a grid beyond its map.
    """
    shapes = check_stages(settings, grids, where=where)
    for name, grid in grids.items():
        side = min(shapes[name][1:])
        if grid > side:
            raise ConfigError(
                f"{where}: a grid of {grid} is larger than the map of {name}, {side} x {side} at {settings.size} px; "
                f"take at most {side}"
            )
    return [shape[0] * grids[name] ** 2 for name, shape in shapes.items() if name in grids]


def build(settings: NetworkSettings, num_classes: int, seed: int) -> ExpressionNet:
    """Builds a network with weights drawn from `seed`, on the CPU in training mode."""
    pooled = pooled_widths(settings, settings.features, where="network.features") if settings.features else ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        options = settings.model_dump(include={"feature_dim", "dropout"})
        backbone = family(settings.name).build(settings)
        network = ExpressionNet(backbone, num_classes, grids=settings.features, pooled=pooled, **options)
        return network.requires_grad_(True)
