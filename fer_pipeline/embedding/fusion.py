"""A trained network in, the same function with its batch norms folded into the convolutions before them out.

Which batch norm follows which convolution is seen in one forward pass over a probe, not read off the code, so that any
backbone can be folded. The result is used only where it equals the original on the probe to a relative `TOLERANCE`; a
network in which a folded convolution feeds something else as well fails that check and stays as it is.
"""

import copy
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3  # half precision, in which features are stored, has a relative step of 1e-3


def fused(network: nn.Module, *, size: int) -> tuple[nn.Module, bool]:
    """The folded network and True, or the network itself and False; `size` is the side of its input."""
    probe = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    probe = probe.contiguous(memory_format=torch.channels_last)
    candidate = copy.deepcopy(network).eval()
    pairs = pairs_of(candidate, probe)
    for convolution, norm in pairs:
        before, after = candidate.get_submodule(convolution), candidate.get_submodule(norm)
        joined = fuse_conv_bn_eval(cast(nn.Conv2d, before), cast(nn.BatchNorm2d, after))
        replace(candidate, convolution, joined)
        replace(candidate, norm, nn.Identity())
    candidate = candidate.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return (candidate, True) if pairs and equal(network(probe), candidate(probe)) else (network, False)


def pairs_of(network: nn.Module, probe: Tensor) -> list[tuple[str, str]]:
    """Convolutions, by name, each with the batch norm whose input is their output."""
    made: dict[int, str] = {}
    alive: list[Tensor] = []  # an output that is freed would give its id to another
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def seen(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = name
                alive.append(output)
            elif id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])], name))

        return module.register_forward_hook(seen)

    watched = [
        watch(name, module) for name, module in network.named_modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        network(probe)
    for handle in watched:
        handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1]  # a shared layer cannot be folded


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module at a dotted name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def equal(expected: Float[Tensor, "n d"], found: Float[Tensor, "n d"]) -> bool:
    """Whether every row differs by less than `TOLERANCE` of its length."""
    scale = expected.norm(dim=1).clamp_min(torch.finfo(expected.dtype).tiny)
    return bool(((found - expected).norm(dim=1) <= TOLERANCE * scale).all())
