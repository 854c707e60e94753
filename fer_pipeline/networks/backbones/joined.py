"""Join what several registered networks make of a face: maps of a face network, opinions of expression networks.

    network: {name: joined, members: [{name: dlib_face, features: {layer3: 4}}, {name: face_api_expressions}]}

Each member prepares the crop by its own template, size and normalisation, so the input of all is the crop's pixels
from 0 to 255. A member gives the averaged maps of its `features`; without them its own features, which are the
log-probabilities of its classes where it is an expression network (not below `FLOOR`, so that one sure mistake is not
all that counts).
"""

import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import Layout, family, pooled_widths
from fer_pipeline.networks.model import pool_maps
from fer_pipeline.networks.settings import Member, NetworkSettings

FLOOR = math.log(1e-6)


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns none: every member brings its own weights."""
    return {}


class Joined(nn.Module):
    """The features of all members, one after the other; `widths` are those of parts that belong together."""

    stages: tuple[str, ...] = ()

    def __init__(self, members: tuple[Member, ...]) -> None:
        super().__init__()
        self._settings, self.members = members, nn.ModuleList(build_member(one) for one in members)
        pairs = zip(members, self.members, strict=True)
        self.widths = tuple(width for pair in pairs for width in member_widths(*pair))
        self.feature_dim = sum(self.widths)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return torch.cat([self._features(*pair, x) for pair in zip(self._settings, self.members, strict=True)], 1)

    def _features(self, member: Member, network: nn.Module, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        one = pretrained.find(member.name)
        inputs = one.preprocessing.normalise(one.preprocessing.resize(x))
        if member.features is not None:
            return pool_maps(network, inputs, member.features)
        outputs = network(inputs)
        return functional.log_softmax(outputs, 1).clamp(min=FLOOR) if one.classes else outputs


def _settings_of(one: pretrained.Pretrained) -> NetworkSettings:
    return NetworkSettings(name=one.network, size=one.preprocessing.size)


def build_member(member: Member) -> nn.Module:
    """Builds the network of a member with drawn weights; ConfigError for one that has no tensors of its own."""
    one = pretrained.find(member.name)
    if not one.classes:
        return family(one.network).build(_settings_of(one))
    if one.build is None:
        raise ConfigError(f"{member.name} runs in a program of its own and cannot be joined; take it out of members")
    return one.build()


def member_widths(member: Member, network: nn.Module) -> list[int]:
    """Returns how many features a member with this network gives, for each stage in its order, or in all."""
    one, where = pretrained.find(member.name), f"network.members, {member.name}"
    if one.classes:
        if member.features is not None:
            raise ConfigError(f"{where}: it gives log-probabilities and has no stages; leave its features out")
        return [len(one.classes)]
    if member.features is None:
        return [cast(Any, network).feature_dim]
    return pooled_widths(_settings_of(one), member.features, where=where)


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the members with drawn weights."""
    if not settings.members:
        raise ConfigError("the network joined joins registered networks: name them in network.members")
    return Joined(settings.members)
