"""Keep an exponential moving average (EMA) of a network's weights.

Source: Tarvainen & Valpola, Mean Teacher (arXiv:1703.01780). Public code means three different things by it: here
parameters are averaged and buffers (the running statistics of batch norms) are copied from the network.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def averaged_copy(network: Network) -> Network:
    """A copy that no gradient changes, where the average starts."""
    return copy.deepcopy(network).requires_grad_(False)


def average_decay(step: int, *, most: float) -> float:
    """A decay that begins low and rises to `most`, with steps from 1 (Progressive Teacher, arXiv:2205.14361, eq. 7)."""
    return min(1 - 1 / (1 + step), most)


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, *, decay: float) -> None:
    """Moves the average towards the network: a ← decay · a + (1 - decay) · w for every parameter."""
    for own, new in zip(average.parameters(), network.parameters(), strict=True):
        own.lerp_(new.detach(), 1 - decay)
    for own, new in zip(average.buffers(), network.buffers(), strict=True):
        own.copy_(new)
