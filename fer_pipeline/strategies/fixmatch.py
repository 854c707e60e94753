"""Learn strong views of pool faces by the label that the network gives their weak view, where it is sure (FixMatch).

Source: Sohn et al., FixMatch (arXiv:2001.07685), eq. 3 and 4, a baseline of Progressive Teacher (arXiv:2205.14361,
table 2). The loss is cross-entropy on labelled faces plus `weight` times that of the strong views of pool faces with
the class predicted from their weak views as label (no gradient goes through it), for faces whose largest probability
there is at least `threshold`. The mean is over all pool faces of the step, those below the threshold count as 0.

Weak views are those of `training.augment` (the paper's: flip and shift); strong ones are covered by `cover` (not in
the paper) and changed by RandAugment before, and a random rectangle is erased after it.

What differs from the source: the magnitude of RandAugment is a setting and not drawn anew for each image, and the
rectangle is of random size where Cutout's is a square of half the side. Optimiser, schedule and the average of
weights (`training.average`, 0.999 there) are the training's settings. Mined faces, where the recipe names them, are
learned by their pseudo-labels beside the labelled. With a `threshold` above 1 no face passes; with `joint: false` too
the network is then that of the supervised strategy, bit for bit.

The history has, as shares of the pool faces: `selected` and, where the pool has labels (they are used for nothing
else), `selected_known` and `selected_right`; `confidence` is the mean of the largest probability.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fer_pipeline.training.batch_norm import forward_with_pool
from fer_pipeline.training.batches import LABELLED, Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import selection_figures, smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.settings import PoolOptions
from fer_pipeline.training.sources import Source, pool_sources
from fer_pipeline.training.strategy import BuildContext, Strategy


class Options(PoolOptions):
    threshold: Annotated[float, Field(ge=0)] = 0.95  # what the largest probability must reach; above 1: none does
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the pool


def sources(options: Options) -> dict[str, Source]:
    return pool_sources(options)


class FixMatch(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return self.options.batch_sizes(batch, images)

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by the faces with labels and the strong views of confident pool faces."""
        options, pool = self.options, batches["unlabelled"]
        names = [name for name in LABELLED if name in batches]
        faces = [self.context.random_view(batches[name], run.generator("augment", name)) for name in names]
        weak = self.context.random_view(pool, run.generator("augment", "weak"))
        strong = self.context.strong_view(pool, run.generator("augment", "strong"), options)
        known, (guess, logits) = forward_with_pool(self.network, faces, [weak, strong], joint=options.joint)
        losses = self.context.label_losses(dict(zip(names, known, strict=True)), batches, smoothing=options.smoothing)
        confidence, predicted = guess.detach().float().softmax(1).max(1)
        selected = (confidence >= options.threshold).float()
        pseudo = weighted_mean(smoothed_cross_entropy(logits, predicted) * selected)
        total = losses["labelled"] + options.mined_weight * losses.get("mined", 0.0) + options.weight * pseudo
        run.update(total)
        figures = selection_figures(selected, predicted, pool.truth)
        return {"loss": total, **losses, "pseudo": pseudo, "confidence": weighted_mean(confidence), **figures}


build = FixMatch
