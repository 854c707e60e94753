"""Build any network of timm by its name there (`timm/convnext_atto`), without its classifier and never downloaded.

Source: Wightman, PyTorch Image Models. Weights in timm's layout have the normalisation that timm notes for them. The
stages are those of timm's `feature_info`, by its names of modules (`stages.2`, `layer3`, `blocks.5`).
"""

import difflib
from types import MethodType
from typing import Any

import timm
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.backbones import Layout
from fer_pipeline.networks.preprocessing import Normalisation
from fer_pipeline.networks.settings import NetworkSettings


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns timm's own names, which are the backbone's; the classifier's tensors are reported as unexpected."""
    config = timm.get_pretrained_cfg(_name(settings), allow_unregistered=True)
    normalisation = Normalisation(mean=config.mean, std=config.std) if config else Normalisation()  # pyright: ignore
    return {"timm": Layout(normalisation, lambda keys: True, lambda name: name)}


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network with pooled features, for the input size of the settings where the architecture fixes one."""
    name = _name(settings)
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    try:
        network: Any = timm.create_model(name, img_size=settings.size, **options)
    except TypeError:  # convolutional networks take any size and no such option
        network = timm.create_model(name, **options)
    network.feature_dim = int(getattr(network, "head_hidden_size", None) or network.num_features)
    described = getattr(network, "feature_info", None) or () if hasattr(network, "forward_intermediates") else ()
    network.stage_names = tuple(one["module"] for one in described)  # `stages` is a layer of many
    network.feature_maps = MethodType(_feature_maps, network)
    return network


def _feature_maps(network: Any, x: Tensor, last: str | None = None) -> dict[str, Tensor]:
    names = network.stage_names[: network.stage_names.index(last) + 1 if last else None]
    options = {"stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
    return dict(zip(names, network.forward_intermediates(x, indices=[*range(len(names))], **options), strict=True))


def _name(settings: NetworkSettings) -> str:
    name = settings.name.removeprefix("timm/")
    if not settings.name.startswith("timm/") or not timm.is_model(name):
        near = ", ".join(f"timm/{other}" for other in difflib.get_close_matches(name, timm.list_models(), n=3))
        raise ConfigError(f"timm has no network {name!r}" + (f"; near it are {near}" if near else ""))
    return name
