"""Supervised training on labelled images, alone or with pseudo-labelled or distilled ones beside them.

Source: OS-FER (arXiv:2005.08551), eq. 1 (primitive learner) and eq. 2 (anchor with VAS or DAS); label smoothing as in
Happy et al. 2019, eq. 2. The paper does not say how the sets are mixed nor how often the few distilled images are seen:

- `mix: pooled` (default): one training set. A batch of the usual size holds `anchor_share` labelled images and
  pseudo-labelled ones for the rest (null: as many as the sizes of the sets say), and the loss is the mean over all.
- `mix: beside`: to a whole labelled batch comes one of `auxiliary_ratio` times its size; the two means are added.
- distilled images: all of them in every step, in a forward pass of their own, in which batch norm uses its running
  statistics without changing them: a handful of odd images must not spoil what thousands of faces have settled.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.losses import smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.strategy import Ingredients, Learner

Weight = Annotated[float, Field(ge=0)]


class Options(Settings):
    """What belongs to this strategy alone."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    mix: Literal["pooled", "beside"] = "pooled"
    anchor_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # pooled: null takes the sizes of the sets
    auxiliary_ratio: Annotated[float, Field(gt=0)] | None = None  # beside: null is 1
    auxiliary_weight: Weight = 1.0
    distilled_weight: Weight = 0.1

    @model_validator(mode="after")
    def _fits_the_mix(self) -> "Options":
        if self.mix == "beside" and self.anchor_share is not None:
            raise ValueError("anchor_share is of mix: pooled; with mix: beside set auxiliary_ratio")
        if self.mix == "pooled" and self.auxiliary_ratio is not None:
            raise ValueError("auxiliary_ratio is of mix: beside; with mix: pooled set anchor_share")
        return self


def build(options: Options, ingredients: Ingredients) -> "Supervised":
    """The strategy with its one network."""
    return Supervised(options, ingredients)


class Supervised(nn.Module):
    """One network, cross-entropy on every stream that is there."""

    def __init__(self, options: Options, ingredients: Ingredients) -> None:
        super().__init__()
        self.options, self.ingredients = options, ingredients
        self.network = ingredients.network("main")

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        """See the module: `distilled` is taken whole, the others by `mix`."""
        sizes = {"labelled": batch}
        if "auxiliary" in images:
            if self.options.mix == "beside":
                sizes["auxiliary"] = max(1, round(batch * (self.options.auxiliary_ratio or 1.0)))
            else:
                by_size = images["labelled"] / (images["labelled"] + images["auxiliary"])
                share = self.options.anchor_share or by_size
                labelled = min(max(1, round(batch * share)), batch - 1)
                sizes = {"labelled": labelled, "auxiliary": batch - labelled}
        return sizes | ({"distilled": 0} if "distilled" in images else {})

    def trained(self) -> Mapping[str, nn.Module]:
        """The one network."""
        return {"main": self.network}

    def predictor(self) -> ExpressionNet:
        """The one network."""
        return self.network

    def step(self, batches: Mapping[str, Batch], learner: Learner) -> dict[str, Tensor]:
        """One forward pass over faces, one over distilled images where there are any, one update."""
        faces = [name for name in ("labelled", "auxiliary") if name in batches]
        augment = self.ingredients.augmentation.random
        views = [augment(batches[name].images, learner.generator("augment", name)) for name in faces]
        inputs = torch.cat(views).contiguous(memory_format=torch.channels_last)
        labels = torch.cat([batches[name].labels for name in faces])
        values = smoothed_cross_entropy(self.network(inputs), labels, smoothing=self.options.smoothing)
        sizes = [len(batches[name]) for name in faces]
        weights = [self._weights(name, batches[name]) for name in faces]
        parts = dict(zip(faces, zip(values.split(sizes), weights, strict=True), strict=True))
        losses = {name: weighted_mean(*part) for name, part in parts.items()}
        if self.options.mix == "pooled":
            factors = {"labelled": 1.0, "auxiliary": self.options.auxiliary_weight}
            pooled = torch.cat([weight * factors[name] for name, (_, weight) in parts.items()])
            total = weighted_mean(values, pooled)
        else:
            total = losses["labelled"] + self.options.auxiliary_weight * losses.get("auxiliary", 0.0)
        if "distilled" in batches:
            losses["distilled"] = self._distilled_loss(batches["distilled"])
            total = total + self.options.distilled_weight * losses["distilled"]
        learner.update(total)
        return {"loss": total, **losses}

    def _weights(self, stream: str, batch: Batch) -> Float[Tensor, " n"]:
        by_class = self.ingredients.class_weights.get(stream)
        if by_class is None:
            return torch.ones(len(batch), device=batch.labels.device)
        return by_class.to(batch.labels.device)[batch.labels]

    def _distilled_loss(self, batch: Batch) -> Tensor:
        inputs = batch.images if batch.prepared else self.ingredients.augmentation.plain(batch.images)
        with frozen_statistics(self.network):
            return smoothed_cross_entropy(self.network(inputs), batch.labels).mean()


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms use and keep their running statistics; their scales and shifts still learn."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
