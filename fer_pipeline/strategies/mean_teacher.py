"""Train a student to agree with its own moving average on unlabelled faces (Mean Teacher).

Source: Tarvainen & Valpola (arXiv:1703.01780), as the baseline of Progressive Teacher (arXiv:2205.14361, table 2). The
loss is cross-entropy on labelled faces plus `weight` times the squared distance of the student's and the teacher's
soft-max outputs (mean over classes) on unlabelled faces, each seen in a random view of its own. The weight rises
linearly over the first `ramp` of the steps; the history has it as `weight`. The teacher's parameters are an
exponential average of the student's with decay min(`decay`, 1 - 1 / (t + 1)), t from 1; its batch-norm buffers are
copied. No gradient reaches the teacher.

What differs from the source: unlabelled faces pass in a forward pass of their own, in which batch norm takes their own
statistics and records none, so that a pool of another kind does not shift the recorded ones; with weight 0 the student
is that of the supervised strategy, bit for bit. The consistency is measured on the unlabelled faces, not on the
labelled too. Mined faces, where a recipe has some, are more labelled faces, and share the batch by the sizes of the
sets.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.averaging import average_decay, averaged_copy, update_average
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy


class Options(Settings):
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the labels
    weight: Annotated[float, Field(ge=0)] = 50.0  # of the consistency
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4  # share of the steps over which the weight rises
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the teacher's average; a short training wants less
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # unlabelled faces a step, as a multiple of the labelled
    keep: Literal["teacher", "student"] = "teacher"  # which network is validated and kept


def sources(options: Options) -> dict[str, Source]:
    pool = Faces(None, required=True)
    return {"labelled": Faces(required=True), "unlabelled": pool, "mined": Faces("pseudo_label")}


class MeanTeacher(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.student = context.network()
        self.teacher = averaged_copy(self.student)

    def phases(self) -> Sequence[Phase]:
        return [Phase("train", {"main": Optimization(self.student)})]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        sizes = divide_batch(batch, images, LABELLED)
        return {**sizes, "unlabelled": max(1, round(batch * self.options.unlabelled_ratio))}

    def predictor(self) -> ExpressionNet:
        return self.teacher if self.options.keep == "teacher" else self.student

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """Updates the student by both losses, then the teacher."""
        smoothing = self.options.smoothing
        supervised, losses = self.context.pooled_loss(self.student, batches, run, smoothing=smoothing)
        consistency = self.context.consistency(self.student, self.teacher, batches["unlabelled"], run)
        weight = self.options.weight * run.ramp(self.options.ramp)
        total = supervised + weight * consistency
        run.update(total)
        update_average(self.teacher, self.student, decay=average_decay(run.phase_step + 1, most=self.options.decay))
        figures = {"consistency": consistency, "weight": torch.tensor(weight, device=total.device)}
        return {"loss": total, **losses, **figures}


build = MeanTeacher
