"""Choose the weights theta_0 from which each unrolled training starts.

Source: Wang et al. (arXiv:1811.10959), sections 3.2 and 3.4: a fixed start is one set of weights, a random start a
fresh draw per outer step, so that the images serve any draw. OS-FER (arXiv:2005.08551) eq. 8 has one theta_0.

Batch norm: a fixed start has its running statistics frozen through all unrolled steps. A random draw has none worth
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

MAX_GROUPS = 32  # as Wu & He (arXiv:1803.08494)


@dataclass(frozen=True)
class InitialWeights:
    """A network in evaluation mode (frozen statistics, no dropout), and the weights of the n-th start for it."""

    network: nn.Module
    draw: Callable[[int], Parameters]


def fixed_weights(network: nn.Module, device: torch.device) -> InitialWeights:
    """Starts every time from the given network."""
    network = network.requires_grad_(True).eval().to(device)
    parameters = trainable(network)
    return InitialWeights(network, lambda number: parameters)


def random_weights(settings: NetworkSettings, num_classes: int, *, seed: int, device: torch.device) -> InitialWeights:
    """Starts from a fresh draw of the architecture, with group norms where it has batch norms."""

    def build_network(number: int) -> nn.Module:
        network = build(settings, num_classes, derive(seed, "distill", "start", number))
        return replace_batch_norms(network).requires_grad_(True).eval().to(device)

    network = build_network(0)
    if statistics := [name for name, _ in network.named_buffers() if "running" in name]:
        raise ConfigError(
            f"distill.start: random needs a network without running statistics, {settings.name} has {statistics[0]}; "
            "use start: fixed or another network"
        )
    return InitialWeights(network, lambda number: trainable(build_network(number)))


def replace_batch_norms(network: nn.Module) -> nn.Module:
    """Replaces each batch norm, in place, by a group norm of as many channels."""
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            channels = module.num_features
            norm = nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels, eps=module.eps, affine=module.affine)
            network.set_submodule(name, norm)
    return network
