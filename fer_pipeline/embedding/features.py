"""Compute the penultimate features of aligned crops with a trained network, in batches.

Crops are uint8 RGB [n h w 3], features float32 [n d]. Source: f(x) of arXiv:2005.08551, eq. 4 and 5. Batch norms are
fused into convolutions where that changes nothing that half precision keeps. On a CPU the forward pass runs in single
precision, on a GPU in half.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fer_pipeline.networks.backbones import pooled_widths
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.settings import Grids

VERSION = 2  # of the features' bytes: raise it when the same crops and weights give other ones

TOLERANCE = 1e-3  # half precision, in which features are stored, has a relative step of 1e-3
BATCHES_AHEAD = 2  # on their way to a GPU or back

# What a GPU computes in. float16 is as fast as bfloat16 and eight times finer; bfloat16 does not overflow.
Precision = Literal["float16", "bfloat16", "float32"]


class Features(nn.Module):
    """A network without its head, or the averaged maps of some stages of its backbone."""

    def __init__(self, model: ExpressionNet, grids: Grids | None) -> None:
        super().__init__()
        self.model, self.grids = model, grids

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.model.features(x) if self.grids is None else self.model.pooled(x, self.grids)


class Extractor:
    """Computes the features that a classifier mines by: its head's, or those that its card names.

    `compile` lets torch write kernels for the network: a minute for each process, and it needs a C++ compiler.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        batch_size: int = 256,
        fuse: bool = True,
        precision: Precision = "float16",
        compile: bool = False,
    ) -> None:
        self.preprocessing = classifier.card.preprocessing
        self.device = classifier.device
        self.batch_size = batch_size
        card, model = classifier.card, classifier.model
        grids = card.mining_features
        self.dimensions = model.feature_dim
        if grids is not None:
            self.dimensions = sum(pooled_widths(card.network, grids, where="mining_features"))
        self.precision = getattr(torch, precision)
        network: nn.Module = Features(model, grids).eval()
        self.fused = False
        if fuse:
            on_cpu = network if self.device.type == "cpu" else copy.deepcopy(network).cpu()
            network, self.fused = fuse_batch_norms(on_cpu, size=self.preprocessing.size)
        network = network.to(self.device)
        self.network = torch.compile(network) if compile else network

    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """Computes the features of any number of crops of one size."""
        parts = (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))
        return np.concatenate([np.empty((0, self.dimensions), np.float32), *self.stream(parts)])

    def stream(self, batches: Iterable[UInt8[np.ndarray, "_ _ _ 3"]]) -> Iterator[Float32[np.ndarray, "_ d"]]:
        """Yields the features of each batch of at most `batch_size` crops, in order.

        On a GPU two batches are taken before the first features come; a CPU gains nothing by that, nor by its copies.
        """
        if self.device.type == "cuda":
            return compute_overlapped(batches, self.compute, device=self.device)
        return (self.compute(torch.from_numpy(np.ascontiguousarray(images))).numpy() for images in batches)

    @torch.inference_mode()
    def compute(self, images: UInt8[Tensor, "n h w 3"]) -> Float32[Tensor, "n d"]:
        """Computes the features of one batch, from crops on the device to features there."""
        half = self.device.type == "cuda" and self.precision is not torch.float32
        with torch.autocast("cuda", dtype=self.precision) if half else nullcontext():
            return self.network(self.preprocessing.apply(images)).float()


def compute_overlapped(
    batches: Iterable[UInt8[np.ndarray, "_ _ _ 3"]],
    compute: Callable[[UInt8[Tensor, "n h w 3"]], Float32[Tensor, "n d"]],
    *,
    device: torch.device,
) -> Iterator[Float32[np.ndarray, "_ d"]]:
    """Yields `compute` of each batch of crops, in order; it maps tensors on the device.

    While a GPU computes one batch, the next is copied to it on a stream of its own out of page-locked memory, and the
    features of the last come back; the host waits for nothing but finished features. A CPU takes the same turns, one
    thing after the other.
    """
    copying = torch.cuda.Stream(device) if device.type == "cuda" else None
    waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def send(images: UInt8[np.ndarray, "_ _ _ 3"]) -> tuple[Tensor, torch.cuda.Event | None]:
        source = torch.empty(images.shape, dtype=torch.uint8, pin_memory=copying is not None)
        source.numpy()[:] = images
        if copying is None:
            return compute(source), None
        working = torch.cuda.current_stream(device)
        with torch.cuda.stream(copying):
            batch = source.to(device, non_blocking=True)
        working.wait_stream(copying)
        batch.record_stream(working)  # or its memory would be given to the next copy while it is still read
        features = compute(batch)
        locked = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        returned = torch.cuda.Event()
        returned.record(working)
        return locked, returned

    def receive() -> Float32[np.ndarray, "_ d"]:
        features, returned = waiting.popleft()
        if returned is not None:
            returned.synchronize()
        return features.numpy().copy()  # page-locked memory goes back at once to who allocates the next

    for images in batches:
        if len(waiting) == BATCHES_AHEAD:
            yield receive()
        waiting.append(send(images))
    while waiting:
        yield receive()


def fuse_batch_norms(network: nn.Module, *, size: int) -> tuple[nn.Module, bool]:
    """Fuses batch norms into the convolutions before them: returns the network and True, or as it was and False.

    Which batch norm follows which convolution is seen in one forward pass over a probe of `size` pixels, not read off
    the code, so that any backbone can be fused. The result is used only where every row equals the original's on the
    probe to a relative `TOLERANCE`; a network in which a fused convolution feeds something else as well fails that
    check and stays as it is.
    """
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
        expected, actual = network(probe), candidate(probe)
    scale = expected.norm(dim=1).clamp_min(torch.finfo(expected.dtype).tiny)
    close = bool(((actual - expected).norm(dim=1) <= TOLERANCE * scale).all())
    return (candidate, True) if pairs and close else (network, False)


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
