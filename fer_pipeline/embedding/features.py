"""Aligned crops and a checkpoint in, penultimate features out, in batches and at the device's best speed.

Source: f(x) of arXiv:2005.08551, eq. 4 and 5. Batch norms are folded where that changes nothing that half precision
keeps (see `fusion`). On a CPU the forward pass runs in single precision, on a GPU in half.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from fer_pipeline.embedding.fusion import fused
from fer_pipeline.embedding.overlap import overlapped
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet

VERSION = 2  # of the features' bytes: raised when the same crops and weights give other ones

# What a GPU computes in. float16 is as fast as bfloat16 and eight times finer; bfloat16 does not overflow.
Precision = Literal["float16", "bfloat16", "float32"]


class Extractor:
    """A classifier's features without its head.

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
        network: nn.Module = FeatureNet(classifier.model).eval()
        self.fused = False
        if fuse:
            here = network if self.device.type == "cpu" else copy.deepcopy(network).cpu()
            network, self.fused = fused(here, size=self.preprocessing.size)
        network = network.to(self.device)
        self.network = torch.compile(network) if compile else network

    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """The features of any number of crops of one size."""
        parts = (images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size))
        return np.concatenate([np.empty((0, self.dimensions), np.float32), *self.stream(parts)])

    def stream(self, batches: Iterable[UInt8[np.ndarray, "_ _ _ 3"]]) -> Iterator[Float32[np.ndarray, "_ d"]]:
        """The features of each batch of at most `batch_size` crops, in order.

        On a GPU up to two batches are taken before the first features come.
        """
        if self.device.type == "cuda":
            return overlapped(
                batches, self.compute, device=self.device, batch_size=self.batch_size, dimensions=self.dimensions
            )
        return (self.compute(torch.from_numpy(np.ascontiguousarray(images))).numpy() for images in batches)

    @torch.inference_mode()
    def compute(self, images: UInt8[Tensor, "n h w 3"]) -> Float32[Tensor, "n d"]:
        """The features of one batch, from crops on the device to features there."""
        half = self.device.type == "cuda" and self.precision is not torch.float32
        with torch.autocast("cuda", dtype=self.precision) if half else nullcontext():
            return self.network(self.preprocessing.apply(images)).float()


class FeatureNet(nn.Module):
    """`ExpressionNet.features` as a module of its own."""

    def __init__(self, model: ExpressionNet) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return self.neck(self.backbone(x))
