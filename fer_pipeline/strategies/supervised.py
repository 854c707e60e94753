"""Train one network with cross-entropy on labelled images, alone or with mined or distilled ones beside them.

Source: OS-FER (arXiv:2005.08551), eq. 1 (primitive learner) and eq. 2 (anchor with VAS or DAS); label smoothing as in
Happy et al. 2019, eq. 2. The paper does not say how the sets are mixed nor how often the few distilled images are seen:

- `mix: pooled` (default): one training set. A batch of the usual size holds `anchor_share` labelled images and mined
  ones for the rest (null: as many as the sizes of the sets say), and the loss is the mean over all.
- `mix: beside`: to a whole labelled batch comes one of `mined_ratio` times its size; the two means are added.
- distilled images, or the random real faces or the noise that are their controls: all of them in every step, in a
  forward pass of their own, in which batch norm uses its running statistics without changing them: a handful of odd
  images must not spoil what thousands of faces have settled.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fer_pipeline.core.settings import Settings
from fer_pipeline.training.batch_norm import frozen_statistics
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.sources import DistilledImages, Faces, NoiseImages, RandomFaces, Source
from fer_pipeline.training.strategy import BuildContext, Strategy

Weight = Annotated[float, Field(ge=0)]
WHOLE = ("distilled", "random_real", "noise")  # sources that are taken whole in every step


class Options(Settings):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    mix: Literal["pooled", "beside"] = "pooled"
    anchor_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # pooled: null takes the sizes of the sets
    mined_ratio: Annotated[float, Field(gt=0)] | None = None  # beside: null is 1
    mined_weight: Weight = 1.0
    distilled_weight: Weight = 0.1  # of distilled images, and of their controls
    real_per_class: Annotated[int, Field(ge=1)] = 1  # of random_real: as many as are distilled

    @model_validator(mode="after")
    def _fits_the_mix(self) -> "Options":
        if self.mix == "beside" and self.anchor_share is not None:
            raise ValueError("anchor_share is of mix: pooled; with mix: beside set mined_ratio")
        if self.mix == "pooled" and self.mined_ratio is not None:
            raise ValueError("mined_ratio is of mix: beside; with mix: pooled set anchor_share")
        return self


def sources(options: Options) -> dict[str, Source]:
    return {
        "labelled": Faces(required=True),
        "mined": Faces("pseudo_label"),
        "distilled": DistilledImages(),
        "random_real": RandomFaces(options.real_per_class),
        "noise": NoiseImages(),
    }


class Supervised(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        """See the module: distilled images and their controls are taken whole, the others by `mix`."""
        sizes = {name: 0 for name in WHOLE if name in images}
        if "mined" not in images:
            return {"labelled": batch, **sizes}
        if self.options.mix == "beside":
            return {"labelled": batch, "mined": max(1, round(batch * (self.options.mined_ratio or 1.0))), **sizes}
        return {**divide_batch(batch, images, LABELLED, self.options.anchor_share), **sizes}

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One forward pass over faces, one over distilled images where there are any, one update."""
        faces = [name for name in LABELLED if name in batches]
        values, weights = self.context.face_losses(self.network, batches, faces, run, smoothing=self.options.smoothing)
        losses = {name: weighted_mean(values[name], weights[name]) for name in faces}
        if self.options.mix == "pooled":
            factors = {"labelled": 1.0, "mined": self.options.mined_weight}
            total = weighted_mean(
                torch.cat([*values.values()]), torch.cat([weights[name] * factors[name] for name in faces])
            )
        else:
            total = losses["labelled"] + self.options.mined_weight * losses.get("mined", 0.0)
        for name in [name for name in WHOLE if name in batches]:
            losses[name] = self._distilled_loss(batches[name])
            total = total + self.options.distilled_weight * losses[name]
        run.update(total)
        return {"loss": total, **losses}

    def _distilled_loss(self, batch: Batch) -> Tensor:
        inputs = batch.images if batch.prepared else self.context.augmentation.plain(batch.images)
        with frozen_statistics(self.network):
            return smoothed_cross_entropy(self.network(inputs), batch.labels).mean()


build = Supervised
