"""Fuse the batch norms of a trained network into the convolutions before them.

Which batch norm follows which convolution is seen in one forward pass over a probe, not read off the code, so that any
backbone can be fused. The result is used only where it equals the original on the probe to a relative `TOLERANCE`; a
network in which a fused convolution feeds something else as well fails that check and stays as it is.
"""

import copy
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3  # half precision, in which features are stored, has a relative step of 1e-3


def fuse_batch_norms(network: nn.Module, *, size: int) -> tuple[nn.Module, bool]:
    """Returns the fused network and True, or the network itself and False; `size` is the side of its input."""
    probe = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    probe = probe.contiguous(memory_format=torch.channels_last)
    candidate = copy.deepcopy(network).eval()
    pairs = find_pairs(candidate, probe)
    for name, norm_name in pairs:
        convolution, norm = candidate.get_submodule(name), candidate.get_submodule(norm_name)
        candidate.set_submodule(name, fuse_conv_bn_eval(cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm)))
        candidate.set_submodule(norm_name, nn.Identity())
    candidate = candidate.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return (candidate, True) if pairs and is_close(network(probe), candidate(probe)) else (network, False)


def find_pairs(network: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Finds convolutions, by name, each with the batch norm whose input is their output."""
    makers: dict[int, str] = {}  # id of an output -> the convolution that made it
    outputs: list[Tensor] = []  # kept alive: an output that is freed would give its id to another
    calls: list[str] = []
    pairs: list[tuple[str, str]] = []

    def note_call(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append(name)
        if isinstance(module, nn.Conv2d):
            makers[id(output)] = name
            outputs.append(output)
        elif id(inputs[0]) in makers:
            pairs.append((makers[id(inputs[0])], name))

    handles = [
        module.register_forward_hook(partial(note_call, name))
        for name, module in network.named_modules()
        if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        network(probe)
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if calls.count(pair[0]) == calls.count(pair[1]) == 1]  # a shared layer stays


def is_close(expected: Float[Tensor, "n d"], actual: Float[Tensor, "n d"]) -> bool:
    """Whether every row differs by less than `TOLERANCE` of its length."""
    scale = expected.norm(dim=1).clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((actual - expected).norm(dim=1) <= TOLERANCE * scale).all())
