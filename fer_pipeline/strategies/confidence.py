"""Train a network that says how sure it is: a second head learns when to ask for the answer.

Source: DeVries & Taylor (arXiv:1802.04865), sections 2 and 3, eq. 2 to 5, as the confidence estimator of Progressive
Teacher (arXiv:2205.14361, section 4.6), which trains it with a mean teacher of its own. With the probabilities p and
the confidence c (a sigmoid) of a face and its label y as a one-hot vector, p' = c p + (1 - c) y, and the loss is
-log p'_y - lambda log c: asking lowers the first term and costs the second. lambda begins at `price`; after each step
it is divided by 0.99 where -log c is above the `budget` in the mean, else by 1.01. Only a share `hints` of a batch may
ask, the others have c = 1, or the network would stop to learn the classes.

The teacher is the moving average of the student's parameters, its batch-norm buffers are copied; on unlabelled faces,
where a recipe has some, `consistency` times the squared distance of both soft-max outputs is added, as in the strategy
mean_teacher. What differs from the source: Progressive Teacher states neither lambda nor the budget, the values are
those of DeVries & Taylor; which faces may ask is drawn for each, so their share is `hints` in the mean.

The checkpoint is any other's, with one more head. The history has lambda (`price`), the mean confidence
(`confidence`), the weight of the unlabelled faces (`weight`) and, where labels were changed, the share of the wrong
ones (`wrong`) and what faces with a wrong label add to the mean confidence (`confidence_wrong`), so that
`confidence_wrong` / `wrong` is their own mean.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.averaging import average_decay, averaged_copy, update_average
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import weighted_mean
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

SMALLEST = 1e-12  # a probability, before its logarithm
RISE, FALL = 0.99, 1.01  # what lambda is divided by


class Options(Settings):
    price: Annotated[float, Field(gt=0)] = 0.1  # lambda, at first
    budget: Annotated[float, Field(gt=0)] | None = 0.3  # of -log c; null: lambda stays
    hints: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of the faces that may ask
    consistency: Annotated[float, Field(ge=0)] = 50.0  # weight of the unlabelled faces
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4  # share of the steps over which it rises
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the teacher's average; a short training wants less
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # unlabelled faces a step, as a multiple of the labelled
    keep: Literal["teacher", "student"] = "teacher"  # which network is validated and kept


def sources(options: Options) -> dict[str, Source]:
    return {"labelled": Faces(required=True), "unlabelled": Faces(None)}


def asking_losses(
    logits: Float[Tensor, "n c"], score: Float[Tensor, " n"], labels: Int64[Tensor, " n"], may_ask: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Returns -log p'_y and -log c of each face (eq. 2 to 4); `score` is that whose sigmoid is c."""
    own = logits.float().softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    used = 1 - may_ask * (1 - score.float().sigmoid())
    return -(used * own + 1 - used).clamp(min=SMALLEST).log(), -functional.logsigmoid(score.float())


class Confidence(Strategy):
    price: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.student = context.network()
        self.student.add_confidence()
        self.teacher = averaged_copy(self.student)
        self.register_buffer("price", torch.tensor(options.price, dtype=torch.float64))

    def phases(self) -> Sequence[Phase]:
        return [Phase("train", {"main": Optimization(self.student)})]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        sizes = {"labelled": batch, "unlabelled": max(1, round(batch * self.options.unlabelled_ratio))}
        return {name: size for name, size in sizes.items() if name in images}

    def predictor(self) -> ExpressionNet:
        return self.teacher if self.options.keep == "teacher" else self.student

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update of the student and of lambda, then of the teacher."""
        batch, device = batches["labelled"], run.worker.device
        inputs = self.context.random_view(batch, run.generator("augment", "labelled"))
        logits, score = self.student.with_confidence(inputs)
        # Drawn for all rows, so that a face may ask or not whichever process has it.
        drawn = np.random.default_rng(derive(run.seed, "hints", run.step)).random(len(run.streams["labelled"].set))
        may_ask = torch.from_numpy(drawn < self.options.hints)[batch.rows].float().to(device)
        answered, asked = asking_losses(logits, score, batch.labels, may_ask)
        weights = self.context.label_weights("labelled", batch.labels)
        asking = weighted_mean(asked, weights)
        total = weighted_mean(answered, weights) + float(self.price) * asking
        found = {"price": self.price.clone()}
        if "unlabelled" in batches:
            found["consistency"] = self.context.consistency(self.student, self.teacher, batches["unlabelled"], run)
            weight = self.options.consistency * run.ramp(self.options.ramp)
            total = total + weight * found["consistency"]
            found["weight"] = torch.tensor(weight, device=device)
        run.update(total)
        if self.options.budget is not None:
            above = float(run.worker.mean(asking.detach())) >= self.options.budget
            self.price /= RISE if above else FALL
        update_average(self.teacher, self.student, decay=average_decay(run.phase_step + 1, most=self.options.decay))
        plain = functional.cross_entropy(logits.detach().float(), batch.labels, reduction="none")
        sure = score.detach().float().sigmoid()
        found |= {"loss": total, "labelled": weighted_mean(plain, weights), "asking": asking}
        found["confidence"] = weighted_mean(sure)
        if batch.truth is not None:
            wrong = ((batch.truth >= 0) & (batch.truth != batch.labels)).float()
            found |= {"wrong": weighted_mean(wrong), "confidence_wrong": weighted_mean(sure * wrong)}
        return found


build = Confidence
