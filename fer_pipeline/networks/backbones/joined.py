"""Join what several published networks make of a face: maps of a face network, opinions of expression networks.

    network: {name: joined, members: [{name: dlib_face, features: {layer3: 4}}, {name: face_api_expressions}]}

Each member prepares the crop by its own template, size and normalisation, so the input of all is the crop's pixels
from 0 to 255. A member gives the averaged maps of its `features`; without them its own features, which are the
log-probabilities of its classes where it is an expression network (not below those of the setting `floor`, so that one
sure mistake is not all that counts). A member in an ONNX file runs in ONNX Runtime and stays in that file: a checkpoint
of the joined network names it and needs it.
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
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Member, NetworkSettings


def layouts(settings: NetworkSettings) -> dict[str, Layout]:
    """Returns none: every member brings its own weights."""
    return {}


class Joined(nn.Module):
    """The features of all members, one after the other; `widths` are those of parts that belong together."""

    stages: tuple[str, ...] = ()

    def __init__(self, members: tuple[Member, ...], floor: float | None) -> None:
        super().__init__()
        self.settings, self.members = members, nn.ModuleList(build_member(one) for one in members)
        self._least = -math.inf if floor is None else math.log(floor)
        pairs = zip(members, self.members, strict=True)
        self.widths = tuple(width for pair in pairs for width in member_widths(*pair))
        self.feature_dim = sum(self.widths)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return torch.cat([self._features(*pair, x) for pair in zip(self.settings, self.members, strict=True)], 1)

    def _features(self, member: Member, network: nn.Module, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        preprocessing = preprocessing_of_member(member)
        inputs = preprocessing.normalise(preprocessing.resize(x))
        if member.features is not None:
            return pool_maps(network, inputs, member.features)
        outputs = network(inputs)
        return functional.log_softmax(outputs, 1).clamp(min=self._least) if classes_of(member) else outputs


def classes_of(member: Member) -> tuple[str, ...]:
    """Returns the classes of an expression network by our names, in the order of its outputs; none of another one."""
    return pretrained.known_classes(member.onnx) if member.onnx else pretrained.find(str(member)).classes


def preprocessing_of_member(member: Member) -> Preprocessing:
    """Returns what a member makes of the crop."""
    return member.onnx.preprocessing if member.onnx else pretrained.find(str(member)).preprocessing


def _settings_of(one: pretrained.Pretrained) -> NetworkSettings:
    return NetworkSettings(name=one.network, size=one.preprocessing.size)


def build_member(member: Member) -> nn.Module:
    """Builds the network of a member with drawn weights; one in an ONNX file is read when it is first used."""
    if member.onnx is not None:
        return pretrained.build_onnx_net(member.onnx)
    one = pretrained.find(str(member))
    return one.build() if one.build else family(one.network).build(_settings_of(one))


def member_widths(member: Member, network: nn.Module) -> list[int]:
    """Returns how many features a member with this network gives, for each stage in its order, or in all."""
    where, classes = f"network.members, {member}", classes_of(member)
    if classes:
        if member.features is not None:
            raise ConfigError(f"{where}: it gives log-probabilities and has no stages; leave its features out")
        return [len(classes)]
    if member.features is None:
        return [cast(Any, network).feature_dim]
    return pooled_widths(_settings_of(pretrained.find(str(member))), member.features, where=where)


def build(settings: NetworkSettings) -> nn.Module:
    """Builds the members with drawn weights."""
    if not settings.members:
        raise ConfigError("the network joined joins published networks: name them in network.members")
    return Joined(settings.members, settings.floor)
