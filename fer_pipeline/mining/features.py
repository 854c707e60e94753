"""Aligned crops and a checkpoint in, penultimate features out, in batches and at the device's best speed.

Source: f(x) of arXiv:2005.08551, eq. 4 and 5. On a CPU batch norms are folded where that changes nothing that half
precision keeps (see `fusion`); on a GPU the forward pass runs in half precision.
"""

from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from fer_pipeline.mining.fusion import fused
from fer_pipeline.networks.checkpoints import Classifier
from fer_pipeline.networks.model import ExpressionNet

VERSION = 1  # of the features' bytes: raised when the same crops and weights give other ones


class Extractor:
    """A classifier's features without its head."""

    def __init__(self, classifier: Classifier, *, batch_size: int = 256, fuse: bool = True) -> None:
        self.preprocessing = classifier.card.preprocessing
        self.device = classifier.device
        self.batch_size = batch_size
        self.dimensions = classifier.model.feature_dim
        self.network: nn.Module = FeatureNet(classifier.model).eval()
        self.fused = False
        if fuse and self.device.type == "cpu":
            self.network, self.fused = fused(self.network, size=self.preprocessing.size)

    @torch.inference_mode()
    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n d"]:
        """The features of any number of crops of one size."""
        found = np.empty((len(images), self.dimensions), np.float32)
        half = torch.autocast("cuda", dtype=torch.float16) if self.device.type == "cuda" else nullcontext()
        for start in range(0, len(images), self.batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self.batch_size])).to(self.device)
            with half:
                features = self.network(self.preprocessing.apply(batch))
            found[start : start + len(batch)] = features.float().cpu().numpy()
        return found


class FeatureNet(nn.Module):
    """`ExpressionNet.features` as a module of its own."""

    def __init__(self, model: ExpressionNet) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n d"]:
        return self.neck(self.backbone(x))
