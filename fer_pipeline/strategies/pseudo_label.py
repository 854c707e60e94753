"""Train on the network's own confident predictions of unlabelled faces (Pseudo-Label).

Source: Lee, ICML workshop 2013, in the form that the libraries of semi-supervised learning share: in every step the
network predicts unlabelled faces, and those whose largest probability exceeds `threshold` are learned with the
predicted class as their label, with weight `weight`, which rises linearly over the first `ramp` of the steps; batch
norm takes their own statistics and records none, and they pass without dropout. By running statistics, which lag behind
from random weights, the labels of a step are all alike and confident, and nothing is learned for hundreds of steps.
Progressive Teacher's baseline of the same name (arXiv:2205.14361, table 2) has no threshold:
`threshold: 0`; its labels are those of a network that was trained before, once and for all, where here they are the
network's own of each step.

The mean is over the whole unlabelled batch, the faces under the threshold count as 0. With `threshold: 1` no face
passes and the network is that of the supervised strategy, bit for bit. Mined faces, where a recipe has some, are more
labelled faces, and share the batch by the sizes of the sets.

The history has the `weight` and, as shares of the unlabelled faces, `selected` and, where some of them have labels
(they are used for nothing else), `selected_known` and `selected_right`.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fer_pipeline.core.settings import Settings
from fer_pipeline.training.batch_norm import unrecorded_statistics
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import selection_figures, smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Strategy


class Options(Settings):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the true labels
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95  # what the largest probability must exceed
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the pseudo-labelled faces
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4  # share of the steps over which the weight rises
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # unlabelled faces a step, as a multiple of the labelled


def sources(options: Options) -> dict[str, Source]:
    pool = Faces(None, required=True)
    return {"labelled": Faces(required=True), "unlabelled": pool, "mined": Faces("pseudo_label")}


class PseudoLabel(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        sizes = divide_batch(batch, images, LABELLED)
        return {**sizes, "unlabelled": max(1, round(batch * self.options.unlabelled_ratio))}

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by the labelled and the confident faces."""
        unlabelled, smoothing = batches["unlabelled"], self.options.smoothing
        supervised, losses = self.context.pooled_loss(self.network, batches, run, smoothing=smoothing)
        with unrecorded_statistics(self.network):
            logits = self.network(self.context.random_view(unlabelled, run.generator("augment", "unlabelled")))
        confidence, predicted = logits.detach().float().softmax(1).max(1)
        confident = (confidence > self.options.threshold).float()
        pseudo = weighted_mean(smoothed_cross_entropy(logits, predicted) * confident)
        weight = self.options.weight * run.ramp(self.options.ramp)
        total = supervised + weight * pseudo
        run.update(total)
        figures = {"pseudo": pseudo, "weight": torch.tensor(weight, device=total.device)}
        return {"loss": total, **losses, **figures, **selection_figures(confident, predicted, unlabelled.truth)}


build = PseudoLabel
