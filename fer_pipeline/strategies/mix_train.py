"""Train one network with cross-entropy on two labelled sets at once (MixTrain).

Source: the baseline MixTrain of Progressive Teacher (arXiv:2205.14361, section 4.3.1, table 2): all images of a target
set and of an auxiliary one, with the labels of both. The paper does not say how they are mixed: here a batch holds
`labelled_share` images of the labelled set and images of the `other` for the rest (null: as many as their sizes say),
and the loss is the mean over all, `other_weight` for an image of the other.

What differs from the paper: an epoch has as many steps as the labelled set fills batches, as with every strategy. Where
the other set is larger, an epoch is a part of both: with 12,271 images beside 283,901 a twenty-fourth. The validation
part is the labelled set's.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fer_pipeline.core.settings import Settings
from fer_pipeline.training.batches import Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import weighted_mean
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Strategy

NAMES = ("labelled", "other")


class Options(Settings):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    labelled_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of a batch; null: as the sizes of the sets say
    other_weight: Annotated[float, Field(ge=0)] = 1.0  # of an image of the other set


def sources(options: Options) -> dict[str, Source]:
    return {name: Faces(required=True) for name in NAMES}


class MixTrain(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return divide_batch(batch, images, NAMES, self.options.labelled_share)

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One forward pass over both sets, one update."""
        values, weights = self.context.face_losses(self.network, batches, NAMES, run, smoothing=self.options.smoothing)
        own, other = (weights[name] for name in NAMES)
        total = weighted_mean(torch.cat([*values.values()]), torch.cat([own, self.options.other_weight * other]))
        run.update(total)
        return {"loss": total, **{name: weighted_mean(values[name], weights[name]) for name in NAMES}}


build = MixTrain
