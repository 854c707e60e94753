"""Train a network on pseudo-labels whose giver learns whether they helped (Meta-Face2Exp).

Source: Zeng et al., Face2Exp, CVPR 2022, with equation numbers of the paper; "code" is what its authors released. The
base network B labels pool faces, the adaptation network A, of the same architecture, learns from these labels. A
step:

1. ŷ is the likeliest class of a pool face by B.
2. A takes one step down L_u = CE(ŷ, A(pool)) (eq. 1), on strong views (section 3.3) or plain ones (algorithm 1):
   `adaptation_view`.
3. The feedback coefficient f says how much this step helped A on the labelled faces (eq. 6): `feedback: exact` is η ·
   ⟨∇CE(y, A'(labelled)), ∇L_u⟩ with A' the network after its step, the second gradient that of this very step and η
   the learning rate of each parameter; `finite_difference` is CE(y, A(labelled)) - CE(y, A'(labelled)), before minus
   after. They agree where A's step is plain SGD (no momentum, decay or clipping) and small; with Adam `exact` is
   refused.
4. B takes one step down L_s + `mined_weight` · L_m + `consistency_weight` · L_c + `feedback_weight` · L_f (eq. 2 to
   5): CE of labelled faces; the same of mined ones by their pseudo-labels, where the recipe names them; CE of B's
   strong view with B's plain view as a soft target without gradient or threshold (code); f · CE(ŷ, B(plain)), or of
   the strong view with the class that B gives this one (code): `feedback_view`.

At the end A alone learns from the labelled faces for `fine_tune_epochs` at a constant rate by plain SGD. A is
validated and kept.

A plain view is that of `training.augment`; a strong one is covered (`cover`) and changed by RandAugment before, and a
random rectangle is erased after it. `joint` is one forward pass of B over labelled faces and both views (code), in
which batch norm mixes domains. The labelled data set of the paper, 10 % of AffectNet, has equally many faces of each
class: `training.balance: dataset` (`sampling` balances the batches, `none` nothing, as the paper on RAF-DB).

The paper's settings: SGD 0.9 with 1e-2 (B) and 1e-3 (A; `adaptation_rate: 0.1`), cosine to 0, batch 32; code: 1e-3
for both, 7 times as many pool faces, 125 epochs of fine-tuning, RandAugment of 2 operations, magnitude 16 of its own
scale.

What differs: both labelled losses of step 3 are computed in one mode (float32, no dropout, batch norm by the labelled
batch and without a record), where the code takes "before" from a joint forward pass and "after" from labelled faces
alone; covering is drawn apart from RandAugment's operations; A begins with the initial weights of the other recipes,
B with its own draw. The paper's text does not say which areas are covered; `strong_views.py` has the readings.

The history has f (`feedback`), the share of steps with f > 0 (`feedback_positive`), L_u (`adaptation`), A's labelled
loss after its step (`adaptation_labelled`) and, where the pool has labels (they are used for nothing else), the share
of pool faces whose label is known (`selected_known`) and whose ŷ is right (`selected_right`).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.batch_norm import forward_with_pool, unrecorded_statistics
from fer_pipeline.training.batches import LABELLED, Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import (
    selection_figures,
    smoothed_cross_entropy,
    soft_cross_entropy,
    weighted_mean,
)
from fer_pipeline.training.settings import Constant, ModelSettings, PoolOptions, Sgd
from fer_pipeline.training.sources import Source, pool_sources
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
View = Literal["plain", "strong"]


class Options(PoolOptions):
    magnitude: Annotated[int, Field(ge=0, le=30)] = 16  # of RandAugment
    cover: Literal["none", "forehead", "keep_landmarks", "cover_landmarks"] = "keep_landmarks"
    feedback: Literal["exact", "finite_difference"] = "exact"
    feedback_view: View = "plain"  # of pool faces in L_f
    feedback_weight: Weight = 1.0
    consistency_weight: Weight = 1.0
    adaptation_view: View = "strong"  # of pool faces that A learns from
    adaptation_rate: Positive = 0.1  # A's learning rate as a multiple of the training's, which is B's
    fine_tune_epochs: Annotated[int, Field(ge=0)] = 10
    fine_tune_learning_rate: Positive = 1e-5


def sources(options: Options) -> dict[str, Source]:
    return pool_sources(options)


def dot_product(one: Sequence[Tensor], other: Sequence[Tensor], rates: Sequence[float]) -> Float[Tensor, ""]:
    """The sum over all parameters of rate · ⟨one, other⟩, in float64 (eq. 6)."""
    products = [rate * (a.double() * b.double()).sum() for a, b, rate in zip(one, other, rates, strict=True)]
    return torch.stack(products).sum()


def check(config: ModelSettings, options: Options, sources: Collection[str], classes: Sequence[str]) -> None:
    """Refuses eq. 6 in its exact form where A's step is not down its gradient."""
    if options.feedback == "exact" and not isinstance(config.training.optimizer, Sgd):
        raise ConfigError(
            f"the option feedback: exact is the product of gradients for SGD, and the optimizer is "
            f"{config.training.optimizer.name}; set the option feedback: finite_difference"
        )


class MetaFace2Exp(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.adaptation = context.network()
        self.base = context.network("base")

    def phases(self) -> Sequence[Phase]:
        own, options = self.context.settings.optimizer, self.options
        slower = own.model_copy(update={"learning_rate": own.learning_rate * options.adaptation_rate})
        both = {"base": Optimization(self.base), "adaptation": Optimization(self.adaptation, slower)}
        plain = Sgd(learning_rate=options.fine_tune_learning_rate, momentum=0.0, weight_decay=0.0)
        last = {"adaptation": Optimization(self.adaptation, plain, Constant(name="constant"))}
        tuning = Phase("fine_tune", last, epochs=options.fine_tune_epochs, streams=("labelled",))
        return [Phase("train", both), *([tuning] if options.fine_tune_epochs else [])]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return self.options.batch_sizes(batch, images)

    def predictor(self) -> ExpressionNet:
        return self.adaptation

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One step of A and one of B, or one of A alone where it is fine-tuned."""
        options, labelled = self.options, batches["labelled"]
        view = self.context.random_view(labelled, run.generator("augment", "labelled"))
        if run.phase == "fine_tune":
            logits = {"labelled": self.adaptation(view)}
            loss = self.context.label_losses(logits, batches, smoothing=options.smoothing)["labelled"]
            run.update(loss)
            return {"loss": loss, "labelled": loss}

        pool, names = batches["unlabelled"], [name for name in LABELLED if name in batches]
        others = [self.context.random_view(batches[name], run.generator("augment", name)) for name in names[1:]]
        plain = self.context.random_view(pool, run.generator("augment", "plain"))
        strong = self.context.strong_view(pool, run.generator("augment", "strong"), options)
        known, (logits, strong_logits) = forward_with_pool(
            self.base, [view, *others], [plain, strong], joint=options.joint
        )
        pseudo = logits.detach().argmax(1)
        feedback, adaptation = self._adapt(
            view, labelled, strong if options.adaptation_view == "strong" else plain, pseudo, run
        )

        losses = self.context.label_losses(dict(zip(names, known, strict=True)), batches, smoothing=options.smoothing)
        wanted = logits.detach().float().softmax(1)
        losses["consistency"] = weighted_mean(soft_cross_entropy(strong_logits, wanted))
        judged, classes = (
            (logits, pseudo) if options.feedback_view == "plain" else (strong_logits, strong_logits.detach().argmax(1))
        )
        losses["feedback_loss"] = feedback * weighted_mean(smoothed_cross_entropy(judged, classes))
        total = losses["labelled"] + options.mined_weight * losses.get("mined", 0.0)
        total = total + options.consistency_weight * losses["consistency"]
        total = total + options.feedback_weight * losses["feedback_loss"]
        run.update(total, "base")

        figures = selection_figures(torch.ones_like(wanted[:, 0]), pseudo, pool.truth)
        del figures["selected"]  # all are
        figures |= {"feedback": feedback, "feedback_positive": (feedback > 0).float()}
        return {"loss": total, **losses, **adaptation, **figures}

    def _adapt(
        self, view: Tensor, labelled: Batch, pool: Tensor, pseudo: Tensor, run: StepContext
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A's step on pseudo-labelled faces; gives the feedback coefficient, and A's losses for the history."""
        loss = weighted_mean(smoothed_cross_entropy(self.adaptation(pool), pseudo))
        of_pool = run.gradients(loss, "adaptation")
        exact, rates = self.options.feedback == "exact", self._rates(run)
        with torch.no_grad():
            before = None if exact else run.worker.mean(self._measure(view, labelled))
        run.apply(of_pool, "adaptation")
        with torch.set_grad_enabled(exact):
            after = self._measure(view, labelled)
        if before is None:
            feedback = dot_product(run.gradients(after, "adaptation"), of_pool, rates)
        else:
            feedback = before - run.worker.mean(after)
        # Where 16-mixed overflows `apply` makes no step, and there is nothing to judge.
        finite = torch.stack([gradient.isfinite().all() for gradient in of_pool]).all()
        feedback = torch.where(finite, feedback, torch.zeros_like(feedback))
        return feedback.float().detach(), {"adaptation": loss, "adaptation_labelled": after.float()}

    def _measure(self, view: Tensor, labelled: Batch) -> Float[Tensor, ""]:
        """A's cross-entropy on labelled faces, in one mode whenever it is asked, and precise: differences are small."""
        with torch.autocast(view.device.type, enabled=False), unrecorded_statistics(self.adaptation):
            values = functional.cross_entropy(self.adaptation(view).double(), labelled.labels, reduction="none")
        return weighted_mean(values, self.context.label_weights("labelled", labelled.labels).double())

    def _rates(self, run: StepContext) -> list[float]:
        """The learning rate of every parameter of A that learns, in the order of its gradients."""
        groups = run.optimizers["adaptation"].param_groups
        by_parameter = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        return [by_parameter[id(p)] for p in self.adaptation.parameters() if p.requires_grad]


build = MetaFace2Exp
