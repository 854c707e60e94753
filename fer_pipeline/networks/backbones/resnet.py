"""Build ResNet-18, -34 and -50 (He et al., arXiv:1512.03385) as torchvision builds them, without their classifier."""

from typing import Any, cast

from torch import nn
from torchvision.models import resnet

from fer_pipeline.networks.backbones import IMAGENET, Layout, has, leaving_out
from fer_pipeline.networks.settings import NetworkSettings

NAMES = ("resnet18", "resnet34", "resnet50")


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    return {"torchvision": Layout(IMAGENET, has("layer1.0.conv1.weight", "bn1.weight"), leaving_out("fc."))}


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the network up to the average pool: 512 features, 2048 of ResNet-50."""
    network = cast(Any, getattr(resnet, settings.name)(weights=None))
    network.feature_dim = network.fc.in_features
    network.fc = nn.Identity()
    return network
