"""Train two student-teacher pairs that select labelled faces for each other and agree on all (Progressive Teacher).

Source: Jiang & Deng (arXiv:2205.14361), algorithm 1, eq. 1 to 8. In every step each teacher ranks the labelled faces
by their cross-entropy and selects the share R(t) = 1 - r min(t / T, 1) with the smallest (eq. 8), rounded up. Student 1
learns from what teacher 2 selects, and student 2 from what teacher 1 does: the mean cross-entropy over the selected
faces (eq. 1 and 5, which lack their minus sign) plus w times the squared distance of its soft-max outputs from that
teacher's, summed over the classes, in the mean over *all* faces, labelled or not (eq. 2 to 4 and 6). With epochs from 1
to N, w = `weight` exp(-5 (1 - epoch / N)^2). Then each teacher moves to a times itself and 1 - a times its own student,
a = min(1 - 1 / (1 + t), `decay`), t from 1 (eq. 7): parameters are averaged, batch-norm buffers copied. Teacher 1 is
validated and kept.

Section 4.6: with the models of a recipe of the strategy `confidence` as the source `confidence`, a face that is not
selected is kept all the same where that network, which is frozen and sees it as it is, is surer than `confident`.
Section 4.3.3: `reserve` keeps those of each class with a probability.

What the paper leaves open, as read here. The batch: faces of both kinds in one forward pass, `training.batch` labelled
ones and `unlabelled_ratio` times as many others (batch 50 and ratio 3: 200 of which a quarter is labelled). The order:
with `orders: own` each student goes through the same faces in an order of its own; `shared` is one batch for both, as
in algorithm 1. Differences between the pairs: both draw their own flips and, where nothing is loaded, their own initial
weights; loaded networks differ by their heads. Teachers predict in evaluation mode. An epoch is a pass over the
labelled faces.

Mined faces, where a recipe has some, are labelled ones whose labels may be wrong; they share the batch by the sizes of
the sets. The history has w as `weight`; the share of faces on which student and teacher agree (`agreement`); and, as
shares of the labelled faces, those that a student learns from (`selected`), those of them that their loss did not
select (`kept_besides`) and, where labels were changed or true ones are known, the selected ones whose truth is known
(`selected_known`) and whose label is right (`selected_right`), and all with a wrong label (`wrong`) and those of them
that were rejected (`wrong_rejected`). Every figure is the mean over both students, but for `loss`, their sum.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.averaging import average_decay, averaged_copy, update_average
from fer_pipeline.training.batches import LABELLED, Batch, divide_batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import selection_figures, smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.sources import Checkpoints, Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

Share = Annotated[float, Field(ge=0, le=1)]


class Options(Settings):
    reject: Annotated[float, Field(ge=0, lt=1)] = 0.05  # r of eq. 8; the paper: the rate of symmetric noise + 0.1
    reject_steps: Annotated[int, Field(ge=1)] = 300  # T of eq. 8
    weight: Annotated[float, Field(ge=0)] = 10.0  # of the consistency, at the end
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the teachers' averages, at most
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 3.0  # unlabelled faces a step, as a multiple of the labelled
    orders: Literal["own", "shared"] = "own"  # whether each student has batches in an order of its own
    confident: Share = 0.9  # with the source confidence: what keeps a face that is not selected
    reserve: tuple[Share, ...] = ()  # by class, in their order: with what probability such a face is kept


def sources(options: Options) -> dict[str, Source]:
    return {
        "labelled": Faces(required=True),
        "unlabelled": Faces(None, required=True),
        "mined": Faces("pseudo_label"),
        "confidence": Checkpoints(one=True, confidence=True),
    }


def check(config: ModelSettings, options: Options, sources: Collection[str], classes: Sequence[str]) -> None:
    """Refuses a reserve that is not about the classes."""
    if options.reserve and len(options.reserve) != len(classes):
        raise ConfigError(
            f"the option reserve has {len(options.reserve)} probabilities, expected one for each of the "
            f"{len(classes)} classes, in their order"
        )


def selected_share(step: int, *, reject: float, reject_steps: int) -> float:
    """R(t) of eq. 8, with steps t from 1."""
    return 1 - reject * min(step / reject_steps, 1)


def consistency_weight(epoch: int, epochs: int, *, most: float) -> float:
    """w of section 4.2, with epochs from 1; it stays where a training goes on after the last."""
    return most * math.exp(-5 * (1 - min(epoch / epochs, 1)) ** 2)


def select_smallest(values: Float[Tensor, " n"], share: float, run: StepContext) -> Float[Tensor, " n"]:
    """A mask of the share of a batch, rounded up, with the smallest values; the batch is that of all processes."""
    whole, rank = run.gather(values.float()), run.worker.rank
    count = math.ceil(share * len(whole) - 1e-9)  # no more for an error in the last digit
    mask = torch.zeros_like(whole)
    mask[whole.argsort(stable=True)[:count]] = 1
    return mask[run.gather(torch.full_like(values, rank, dtype=torch.float32)) == rank]


class ProgressiveTeacher(Strategy):
    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.orders = 2 if options.orders == "own" else 1
        self.students = nn.ModuleList([context.network(), context.network("second")])
        self.teachers = nn.ModuleList(averaged_copy(student) for student in self.students)
        self.names = [name for name in LABELLED if name in context.images]
        if "confidence" in context.checkpoints:
            for name in self.names:
                self.register_buffer(f"confidence_{name}", torch.full((context.images[name],), math.nan))

    def phases(self) -> Sequence[Phase]:
        return [Phase("train", {f"student{i + 1}": Optimization(one) for i, one in enumerate(self.students)})]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        sizes = divide_batch(batch, images, LABELLED)
        return {**sizes, "unlabelled": max(1, round(batch * self.options.unlabelled_ratio))}

    def predictor(self) -> ExpressionNet:
        teacher = self.teachers[0]
        assert isinstance(teacher, ExpressionNet)
        return teacher

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """Each student learns from the other's teacher; then each teacher moves towards its own student."""
        self._look_up_confidences(run)
        steps = run.phase_step + 1
        share = selected_share(steps, reject=self.options.reject, reject_steps=self.options.reject_steps)
        epochs = math.ceil(run.phase_steps / run.steps_per_epoch)
        weight = consistency_weight(run.epoch + 1, epochs, most=self.options.weight)
        found = [self._learn(number, batches, run, share=share, weight=weight) for number in (0, 1)]
        total = found[0]["loss"] + found[1]["loss"]
        run.update(total)
        for teacher, student in zip(self.teachers, self.students, strict=True):
            update_average(teacher, student, decay=average_decay(steps, most=self.options.decay))
        mean = {name: (found[0][name] + found[1][name]) / 2 for name in found[0]}
        return {**mean, "loss": total, "weight": torch.tensor(weight, device=total.device)}

    def _learn(
        self, number: int, batches: Mapping[str, Batch], run: StepContext, *, share: float, weight: float
    ) -> dict[str, Tensor]:
        """The losses of one student, which the other pair's teacher guides, and what the history says of them."""
        student, teacher = self.students[number], self.teachers[1 - number].eval()
        part = number if self.orders == 2 else 0
        own = {name: one.part(part, self.orders) for name, one in batches.items()}
        names = [*self.names, "unlabelled"]

        def views(who: str) -> Tensor:
            parts = [self.context.random_view(own[name], run.generator("augment", name, who, number)) for name in names]
            return torch.cat(parts).contiguous(memory_format=torch.channels_last)

        with torch.no_grad():
            guide = teacher(views("teacher")).float()
        logits = student(views("student")).float()
        labels = torch.cat([own[name].labels for name in self.names])
        weights = torch.cat([self.context.label_weights(name, own[name].labels) for name in self.names])
        selected = select_smallest(smoothed_cross_entropy(guide[: len(labels)], labels), share, run)
        kept = torch.maximum(selected, self._keep(own, labels, run, number))
        supervised = weighted_mean(smoothed_cross_entropy(logits[: len(labels)], labels), weights * kept)
        wanted, probabilities = guide.softmax(1), logits.softmax(1)
        consistency = weighted_mean((probabilities - wanted).square().sum(1))
        found = {
            "loss": supervised + weight * consistency,
            "labelled": supervised,
            "consistency": consistency,
            "kept_besides": weighted_mean(kept - selected),
            "agreement": weighted_mean((probabilities.argmax(1) == wanted.argmax(1)).float()),
        }
        truths = [own[name].truth for name in self.names]
        truth = None
        if any(one is not None for one in truths):
            unknown = [torch.full_like(own[name].labels, -1) for name in self.names]
            truth = torch.cat([none if one is None else one for one, none in zip(truths, unknown, strict=True)])
            wrong = ((truth >= 0) & (labels != truth)).float()
            found |= {"wrong": weighted_mean(wrong), "wrong_rejected": weighted_mean(wrong * (1 - kept))}
        return found | selection_figures(kept, labels, truth)

    def _keep(self, own: Mapping[str, Batch], labels: Tensor, run: StepContext, number: int) -> Float[Tensor, " n"]:
        """A mask of the labelled faces that are kept whether they are selected or not."""
        keep = torch.zeros(len(labels), device=labels.device)
        if "confidence" in self.context.checkpoints:
            sure = [self.get_buffer(f"confidence_{name}")[own[name].rows.to(labels.device)] for name in self.names]
            keep = (torch.cat(sure) > self.options.confident).float()
        if self.options.reserve:
            # Drawn for all rows, so that a face is kept or not whichever process has it.
            drawn = [
                np.random.default_rng(derive(run.seed, "reserve", name, number, run.step)).random(
                    len(run.streams[name].set)
                )[own[name].rows.numpy()]
                for name in self.names
            ]
            chances = torch.tensor(self.options.reserve, dtype=torch.float64)[labels.cpu()].numpy()
            keep = torch.maximum(keep, torch.from_numpy(np.concatenate(drawn) < chances).float().to(labels.device))
        return keep

    def _look_up_confidences(self, run: StepContext) -> None:
        """Asks the source `confidence` of every labelled face, once."""
        if "confidence" not in self.context.checkpoints or not self.get_buffer("confidence_labelled").isnan().all():
            return
        loaded = self.context.trained("confidence")
        assert loaded is not None, "it is among the checkpoints"
        network, view = loaded[0].to(run.worker.device), loaded[1].preprocessing

        def ask(x: Float[Tensor, "k 3 s s"]) -> Float[Tensor, "k 1"]:
            return network.with_confidence(x)[1].float().sigmoid().unsqueeze(1)

        for name in self.names:
            values = run.compute(name, network, ask, 1, view)
            self.get_buffer(f"confidence_{name}").copy_(values.squeeze(1))


build = ProgressiveTeacher
