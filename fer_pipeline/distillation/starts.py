"""Where the unrolled training starts: a trained network in, the weights theta_0 of each outer step out.

Source: Wang et al. (arXiv:1811.10959), sections 3.2 and 3.4: a fixed start is one set of weights, a random start a
fresh draw per outer step, so that the images serve any draw. OS-FER (arXiv:2005.08551) eq. 8 has one theta_0.

Batch norm: a fixed start keeps its running statistics frozen through all unrolled steps. A random draw has none worth
freezing, and those of seven odd images are no better, so its batch norms are replaced by group norms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.distillation.unrolled import Parameters, trainable
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.settings import NetworkSettings

MOST_GROUPS = 32  # as Wu & He (arXiv:1803.08494)


@dataclass(frozen=True)
class Learner:
    """The network as a frame, and the weights that the n-th start puts into it."""

    network: nn.Module  # evaluation mode: frozen statistics, no dropout
    start: Callable[[int], Parameters]


def fixed_learner(network: nn.Module, device: torch.device) -> Learner:
    """Every start is the given network."""
    network = network.requires_grad_(True).eval().to(device)
    parameters = trainable(network)
    return Learner(network=network, start=lambda number: parameters)


def random_learner(settings: NetworkSettings, num_classes: int, *, seed: int, device: torch.device) -> Learner:
    """Every start is a fresh draw of the architecture, with group norms where it has batch norms."""

    def drawn(number: int) -> nn.Module:
        fresh = build(settings, num_classes, derive(seed, "distill", "start", number))
        return with_group_norms(fresh).requires_grad_(True).eval().to(device)

    frame = drawn(0)
    if statistics := [name for name, _ in frame.named_buffers() if "running" in name]:
        raise ConfigError(
            f"distill.start: random needs a network without running statistics, {settings.name} has {statistics[0]}; "
            "use start: fixed or another network"
        )
    return Learner(network=frame, start=lambda number: trainable(drawn(number)))


def with_group_norms(network: nn.Module) -> nn.Module:
    """The network with each batch norm replaced, in place, by a group norm of as many channels."""
    for name, module in list(network.named_children()):
        if isinstance(module, _BatchNorm):
            groups = math.gcd(MOST_GROUPS, module.num_features)
            setattr(network, name, nn.GroupNorm(groups, module.num_features, eps=module.eps, affine=module.affine))
        else:
            with_group_norms(module)
    return network
