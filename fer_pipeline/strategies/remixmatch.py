"""Learn strong views of pool faces by a guess whose class shares are aligned with the labelled faces' (ReMixMatch).

Source: Berthelot et al., ReMixMatch (arXiv:1911.09785), section 3 and algorithm 1; of eleven methods the best on
pools of unconstrained faces in arXiv:2306.01229.

- *Distribution alignment* (section 3.1): the guess of a pool face is q · p / p̃, normalised, with q the prediction of
  its weak view, p̃ the mean prediction over the last 128 steps (this one included) and p the class shares that
  `align_to` names; then sharpened, q^(1 / temperature), normalised.
- *Augmentation anchoring* (section 3.2): the guess is the target of the weak and of `strong_views` strong views.
- *MixUp* over all images, targets alike: x' = λ x + (1 - λ) x2 with λ = max(b, 1 - b) and b ~ Beta(`mixup`, `mixup`),
  where x2 is another image of the step; 0 mixes nothing.
- The loss (eq. 3): cross-entropy of mixed faces with labels, plus `weight` times that of mixed pool faces, plus
  `anchor_weight` times that of the first strong view, not mixed, plus `rotation_weight` times that of the turn by 0,
  90, 180 or 270 degrees of that view, which a head of its own tells (0: no such head). The weights of the pool rise
  linearly over the first `ramp` of the steps.

What differs from the source: strong views are those of RandAugment and `cover` in the place of CTAugment, two by
default in the place of eight; faces with labels are seen in weak views; p are the shares of the whole labelled set,
not of the faces seen so far. For the guess and for turned views batch norm takes the statistics of the batch and
records none, as the authors' code does: by running statistics, which lag behind in the first epochs, all faces of a
step are guessed alike, and from random weights nothing is learned. Mined faces, where the recipe names them, are
learned by their pseudo-labels beside the labelled. Mixing pairs images of one process.

The history has `confidence`, the mean largest probability of the guess; `misalignment`, half the sum of |p̃ - p| over
the classes, from 0 to 1; `ramp`, how far the weights of the pool have risen, from 0 to 1; and, where the pool has
labels (they are used for nothing else), the shares `selected_known` and `selected_right` (of the guess's likeliest
class).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fer_pipeline.training.batch_norm import forward_with_pool, unrecorded_statistics
from fer_pipeline.training.batches import LABELLED, Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import (
    selection_figures,
    smoothed_cross_entropy,
    soft_cross_entropy,
    weighted_mean,
)
from fer_pipeline.training.settings import PoolOptions
from fer_pipeline.training.sources import Source, pool_sources
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

Weight = Annotated[float, Field(ge=0)]
STEPS_AVERAGED = 128
TURNS = 4


class Options(PoolOptions):
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # pool faces a step, as a multiple of the labelled
    strong_views: Annotated[int, Field(ge=1, le=8)] = 2  # of each pool face
    align_to: Literal["labelled", "uniform", "none"] = "labelled"  # whose class shares the guesses are given
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.5  # below 1 sharpens the guess
    mixup: Weight = 0.75
    weight: Weight = 1.5  # of mixed pool faces
    anchor_weight: Weight = 0.5  # of the first strong view
    rotation_weight: Weight = 0.5
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4  # share of the steps over which the pool's weights rise


def sources(options: Options) -> dict[str, Source]:
    return pool_sources(options)


def align(guess: Float[Tensor, "n c"], wanted: Float[Tensor, " c"], found: Float[Tensor, " c"]) -> Float[Tensor, "n c"]:
    """Guesses times the ratio of two distributions over the classes, normalised (section 3.1)."""
    scaled = guess * (wanted / found.clamp(min=1e-6))
    return scaled / scaled.sum(1, keepdim=True).clamp(min=1e-12)


def sharpen(guess: Float[Tensor, "n c"], temperature: float) -> Float[Tensor, "n c"]:
    powers = guess ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


class ReMixMatch(Strategy):
    """`predictions` has the mean predictions [128 c] of the last steps, `averaged` the number of steps so far."""

    predictions: Tensor
    averaged: Tensor
    wanted: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()
        self.turn_head = nn.Linear(self.network.feature_dim, TURNS) if options.rotation_weight else None
        shares = torch.ones(context.num_classes, dtype=torch.float64)
        if options.align_to == "labelled":
            shares = context.class_counts["labelled"].double()
        self.register_buffer("wanted", (shares / shares.sum()).float())
        self.register_buffer("predictions", torch.zeros(STEPS_AVERAGED, context.num_classes))
        self.register_buffer("averaged", torch.zeros((), dtype=torch.int64))

    def phases(self) -> Sequence[Phase]:
        learned = {"network": self.network} | ({"turn_head": self.turn_head} if self.turn_head else {})
        return [Phase("train", {"main": Optimization(nn.ModuleDict(learned))})]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return self.options.batch_sizes(batch, images)

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by mixed images, the first strong views as they are, and their turns."""
        options, pool = self.options, batches["unlabelled"]
        names = [name for name in LABELLED if name in batches]
        views = [self.context.random_view(batches[name], run.generator("augment", name)) for name in names]
        weak = self.context.random_view(pool, run.generator("augment", "weak"))
        strong = [
            self.context.strong_view(pool, run.generator("augment", "strong", number), options)
            for number in range(options.strong_views)
        ]
        guess, found = self._guess(weak, run)
        targets = [self._smoothed(batches[name].labels) for name in names] + [guess] * (1 + len(strong))
        mixed, targets = self._mix([*views, weak, *strong], targets, run)
        known, (others, anchored) = forward_with_pool(
            self.network, mixed[: len(names)], [torch.cat(mixed[len(names) :]), strong[0]], joint=options.joint
        )

        losses = {}
        for name, logits, wanted in zip(names, known, targets, strict=False):
            weights = self.context.label_weights(name, batches[name].labels)
            losses[name] = weighted_mean(soft_cross_entropy(logits, wanted), weights)
        losses["pool"] = weighted_mean(soft_cross_entropy(others, torch.cat(targets[len(names) :])))
        losses["anchored"] = weighted_mean(soft_cross_entropy(anchored, guess))
        of_pool = options.weight * losses["pool"] + options.anchor_weight * losses["anchored"]
        total = losses["labelled"] + options.mined_weight * losses.get("mined", 0.0)
        ramp = run.ramp(options.ramp)
        total = total + ramp * of_pool
        if self.turn_head is not None:
            losses["rotation"] = self._turned(strong[0], self.turn_head, run)
            total = total + options.rotation_weight * losses["rotation"]
        run.update(total)

        confidence, predicted = guess.max(1)
        figures = selection_figures(torch.ones_like(confidence), predicted, pool.truth)
        figures |= {"confidence": weighted_mean(confidence), "misalignment": (found - self.wanted).abs().sum() / 2}
        figures["ramp"] = torch.tensor(ramp, device=total.device)
        return {"loss": total, **losses, **{key: one for key, one in figures.items() if key != "selected"}}

    @torch.no_grad()
    def _guess(self, weak: Tensor, run: StepContext) -> tuple[Float[Tensor, "n c"], Float[Tensor, " c"]]:
        """The targets of pool faces, and the mean prediction over the last steps."""
        with unrecorded_statistics(self.network):
            raw = self.network(weak).float().softmax(1)
        self.predictions[int(self.averaged) % STEPS_AVERAGED] = run.gather(raw).mean(0)
        self.averaged += 1
        found = self.predictions[: int(self.averaged)].mean(0)
        guess = raw if self.options.align_to == "none" else align(raw, self.wanted, found)
        return sharpen(guess, self.options.temperature), found

    def _smoothed(self, labels: Tensor) -> Float[Tensor, "n c"]:
        """Labels as distributions, smoothed as in `smoothed_cross_entropy`."""
        classes, smoothing = self.context.num_classes, self.options.smoothing
        own = one_hot(labels, classes).float()
        return own * (1 - smoothing) + (1 - own) * smoothing / (classes - 1)

    def _mix(
        self, images: Sequence[Tensor], targets: Sequence[Tensor], run: StepContext
    ) -> tuple[list[Tensor], list[Tensor]]:
        """MixUp of each image with a random one of all; the parts stay as long as they are."""
        if self.options.mixup == 0:
            return list(images), list(targets)
        sizes, random = [len(part) for part in images], np.random.default_rng(run.child_seed("mixup"))
        x, y = torch.cat(list(images)), torch.cat(list(targets))
        others = torch.from_numpy(random.permutation(len(x))).to(x.device)
        share = random.beta(self.options.mixup, self.options.mixup, len(x)).astype(np.float32)
        kept = torch.from_numpy(np.maximum(share, 1 - share)).to(x.device)
        x = torch.lerp(x[others], x, kept.view(-1, 1, 1, 1))
        y = torch.lerp(y[others], y, kept.view(-1, 1))
        return list(x.split(sizes)), list(y.split(sizes))

    def _turned(self, images: Tensor, head: nn.Module, run: StepContext) -> Tensor:
        turns = torch.randint(TURNS, (len(images),), generator=run.generator("turns")).to(images.device)
        turned = torch.stack([torch.rot90(images, number, (2, 3)) for number in range(TURNS)])
        chosen = turned[turns, torch.arange(len(images), device=images.device)]
        with unrecorded_statistics(self.network):
            logits = head(self.network.features(chosen.contiguous(memory_format=torch.channels_last)))
        return weighted_mean(smoothed_cross_entropy(logits, turns))


build = ReMixMatch
