"""Build any network of timm by its name there (`timm/convnext_atto`), without its classifier and never downloaded.

Source: Wightman, PyTorch Image Models. Weights in timm's layout have the normalisation that timm notes for them.
"""

import difflib
from typing import Any

import timm
from torch import nn

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
    return network


def _name(settings: NetworkSettings) -> str:
    name = settings.name.removeprefix("timm/")
    if not settings.name.startswith("timm/") or not timm.is_model(name):
        near = ", ".join(f"timm/{other}" for other in difflib.get_close_matches(name, timm.list_models(), n=3))
        raise ConfigError(f"timm has no network {name!r}" + (f"; near it are {near}" if near else ""))
    return name
