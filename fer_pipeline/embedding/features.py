"""Compute the penultimate features of aligned crops with a trained network, in batches.

Crops are uint8 RGB [n h w 3], features float32 [n d]. Source: f(x) of arXiv:2005.08551, eq. 4 and 5. Batch norms are
fused into convolutions where that changes nothing that half precision keeps (see `fusion`). On a CPU the forward pass
runs in single precision, on a GPU in half.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from fer_pipeline.embedding.fusion import fuse_batch_norms
from fer_pipeline.embedding.transfer import compute_overlapped
from fer_pipeline.networks.checkpoints import Classifier

VERSION = 2  # of the features' bytes: raise it when the same crops and weights give other ones

# What a GPU computes in. float16 is as fast as bfloat16 and eight times finer; bfloat16 does not overflow.
Precision = Literal["float16", "bfloat16", "float32"]


class Extractor:
    """Computes a classifier's features without its head.

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
        self.dimensions = classifier.model.feature_dim
        self.precision = getattr(torch, precision)
        network: nn.Module = nn.Sequential(classifier.model.backbone, classifier.model.neck).eval()
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

        On a GPU up to two batches are taken before the first features come.
        """
        if self.device.type == "cuda":
            return compute_overlapped(
                batches, self.compute, device=self.device, batch_size=self.batch_size, dimensions=self.dimensions
            )
        return (self.compute(torch.from_numpy(np.ascontiguousarray(images))).numpy() for images in batches)

    @torch.inference_mode()
    def compute(self, images: UInt8[Tensor, "n h w 3"]) -> Float32[Tensor, "n d"]:
        """Computes the features of one batch, from crops on the device to features there."""
        half = self.device.type == "cuda" and self.precision is not torch.float32
        with torch.autocast("cuda", dtype=self.precision) if half else nullcontext():
            return self.network(self.preprocessing.apply(images)).float()
