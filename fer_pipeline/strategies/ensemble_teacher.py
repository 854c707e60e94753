"""Train a student on labelled faces and on a whole pool that an ensemble of other networks has classified.

Source: distillation of an ensemble (Hinton, Vinyals & Dean, arXiv:1503.02531) and Noisy Student (Xie et al.,
arXiv:1911.04252): fixed teachers give every unlabelled face a target, soft or hard, once and not augmented; the student
learns these targets, in random views, beside the true labels. The target of a face x is p(x) = softmax(l(x) / T),

    l_k(x) = sum_t w_t max(log p_t(k | x, k is one of our classes), log 1e-6) / sum_t w_t,

with the weights w_t of the teachers and the temperature T; with `labels: hard` it is the class of the largest l. A face
counts where the largest p exceeds `threshold`, with the weight (n / (c n_k))^`balance`, where n_k of the n faces that
count have its class k: 0 leaves the pool's shares as they are, with 1 every class counts alike.

What differs from the sources: l is an average of log-probabilities (not of probabilities), bounded so that one sure
mistake is not all that counts; the loss on the pool is not multiplied by T^2; the teachers are not trained on it.

Teachers are published networks by name, ONNX files whose order of classes is stated, and own checkpoints, which are a
source of the recipe (`checkpoints`, all of a folder), so that DVC knows of them. The models of a recipe teach every
seed together, so that all seeds have one teacher, as they have one labeller; where each seed has a labeller of its own
(`train_primitive.seeds_upstream`), the models that learned from what it mined teach their own seed alone. Own
checkpoints know the labels of the faces that they learned from, so that they are asked about no labelled face: one in
the pool is refused. Each teacher must know all classes of the walk; the others that it knows are left out before the
probabilities are normalised.

The targets are kept with the state of the training, 2 bytes a class and face and 4 for its weight: 104 MB for
5.8 million faces of seven classes, ten times as much while they are made. `statistics: joint` passes both kinds of
faces through batch norm together, as supervised training with `mix: beside` does, and is that training if all faces
count and have these labels; with `own` the pool passes by itself, and its statistics are not recorded. Where no pool
face counts, this is supervised training on the labelled faces.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.checkpoints import checkpoint_folders, load_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import (
    OnnxSettings,
    PublishedNet,
    find_columns,
    read_expression_net,
    read_onnx_net,
)
from fer_pipeline.networks.settings import FLOOR
from fer_pipeline.networks.weights import PIXELS, WeightSettings, describe_origin, note_unknown
from fer_pipeline.training.batch_norm import unrecorded_statistics
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import soft_cross_entropy, weighted_mean
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.sources import Checkpoints, Faces, Source
from fer_pipeline.training.strategy import BuildContext, Strategy


class PublishedTeacher(WeightSettings):
    """A registered expression network."""

    weight: PositiveFloat = 1.0  # in the average

    @model_validator(mode="after")
    def _classifies(self) -> "PublishedTeacher":
        try:
            if not (self.name and pretrained.find(self.name).classes):
                known = ", ".join(name for name in pretrained.names() if pretrained.find(name).classes)
                raise ValueError(f"a teacher is an expression network: set name, one of {known}")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self


class OnnxTeacher(OnnxSettings):
    """An expression network in a file of the user's."""

    weight: PositiveFloat = 1.0


def _kind(teacher: Any) -> str:
    is_onnx = "classes" in teacher if isinstance(teacher, dict) else isinstance(teacher, OnnxTeacher)
    return "onnx" if is_onnx else "published"


Teacher = Annotated[
    Annotated[PublishedTeacher, Tag("published")] | Annotated[OnnxTeacher, Tag("onnx")], Discriminator(_kind)
]


class Options(Settings):
    teachers: tuple[Teacher, ...] = ()  # networks of others; own ones are the source `checkpoints`
    checkpoint_weight: PositiveFloat = 1.0  # of each own network in the average
    labels: Literal["soft", "hard"] = "soft"
    temperature: PositiveFloat = 1.0  # of the average: below 1 sharper, above 1 flatter
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.0  # what the largest probability must exceed; 1: no face does
    balance: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the pool's classes, by weights: 0 not, 1 wholly
    weight: Annotated[float, Field(ge=0)] = 1.0  # of the pool's loss beside that of the labelled faces
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the true labels
    unlabelled_ratio: Annotated[float, Field(gt=0)] = 1.0  # pool faces a step, as a multiple of the labelled
    statistics: Literal["joint", "own"] = "joint"  # of batch norm on pool faces


def sources(options: Options) -> dict[str, Source]:
    faces = {"labelled": Faces(required=True), "unlabelled": Faces(None, required=True)}
    return {**faces, "checkpoints": Checkpoints(required=not options.teachers)}


def check(config: ModelSettings, options: Options, sources: Collection[str], classes: Sequence[str]) -> None:
    """Refuses a teacher that does not know all classes."""
    for teacher in options.teachers:
        if isinstance(teacher, OnnxTeacher):
            find_columns(str(teacher.path), [canonical(name) for name in teacher.classes], classes)
        else:
            find_columns(str(teacher), pretrained.find(str(teacher)).classes, classes)


class EnsembleTeacher(Strategy):
    targets: Tensor
    weights: Tensor
    called: Tensor
    used: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.options, self.context = options, context
        self.network = context.network()
        self._some_count: bool | None = None  # whether a face of the pool counts, once it is known here
        faces, classes = context.images["unlabelled"], context.num_classes
        self.register_buffer("targets", torch.zeros(faces, classes, dtype=torch.float16))
        self.register_buffer("weights", torch.zeros(faces))
        for name in ("called", "used"):  # faces of each class: all, and those that count
            self.register_buffer(name, torch.zeros(classes, dtype=torch.int64))

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> dict[str, int]:
        return {"labelled": batch, "unlabelled": max(1, round(batch * self.options.unlabelled_ratio))}

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """One update by the labelled faces and those of the pool that count.

        Of each class the history has the share of the pool that has it as its target and counts.
        """
        if self._some_count is None:
            if not self.called.any():
                self._ask(run)
            self._some_count = bool(self.used.any())
        labelled, pool = batches["labelled"], batches["unlabelled"]
        inputs = self.context.random_view(labelled, run.generator("augment", "labelled"))
        logits, taught = self._logits(inputs, pool, run)
        scores = {"labelled": logits}
        supervised = self.context.label_losses(scores, batches, smoothing=self.options.smoothing)["labelled"]
        total, losses = supervised, {"labelled": supervised}
        if taught is not None:
            rows = pool.rows.to(self.targets.device)
            losses["pool"] = weighted_mean(soft_cross_entropy(taught, self.targets[rows].float()), self.weights[rows])
            total = supervised + self.options.weight * losses["pool"]
        run.update(total)
        shares = self.used.double() / len(self.targets)
        names = [f"used_{name}" for name in self.context.classes]
        return {"loss": total, **losses, **dict(zip(names, shares, strict=True))}

    def _logits(
        self, inputs: Float[Tensor, "n 3 s s"], pool: Batch, run: StepContext
    ) -> tuple[Float[Tensor, "n c"], Float[Tensor, "m c"] | None]:
        """The scores of the labelled and of the pool faces; None for these where none counts."""
        if not self._some_count:
            return self.network(inputs), None
        views = self.context.random_view(pool, run.generator("augment", "unlabelled"))
        if self.options.statistics == "own":
            logits = self.network(inputs)
            with unrecorded_statistics(self.network, dropout=True):
                return logits, self.network(views)
        both = torch.cat([inputs, views]).contiguous(memory_format=torch.channels_last)
        logits, taught = self.network(both).split([len(inputs), len(views)])
        return logits, taught

    def _ask(self, run: StepContext) -> None:
        """Asks all teachers about every face of the pool, reading each once, and settles what is learned."""
        options, pool = self.options, run.streams["unlabelled"].set
        teachers = self._teachers(run)
        networks = nn.ModuleList([net.network for _, net in teachers])
        columns = [find_columns(net.name, net.classes, self.context.classes) for _, net in teachers]
        sum_of_weights = sum(weight for weight, _ in teachers)

        def average(pixels: Float[Tensor, "k 3 h w"]) -> Float[Tensor, "k c"]:
            total = torch.zeros(len(pixels), self.context.num_classes, device=pixels.device)
            for (weight, net), own in zip(teachers, columns, strict=True):
                inputs = net.preprocessing.normalise(net.preprocessing.resize(pixels))
                log_p = functional.log_softmax(net.network(inputs).float()[:, own], 1)
                total += weight / sum_of_weights * log_p.clamp(min=math.log(FLOOR))
            return total

        side = pool.pixels(np.zeros(1, np.int64)).shape[1]
        plain = Preprocessing(size=side, **PIXELS.model_dump())  # each teacher prepares the crop in its own way
        with torch.autocast(run.worker.device.type, enabled=False):
            opinions = run.compute("unlabelled", networks, average, self.context.num_classes, plain)
        targets, weights, called, used = settle_targets(opinions, options)
        for name, value in {"targets": targets, "weights": weights, "called": called, "used": used}.items():
            self.get_buffer(name).copy_(value)

    def _teachers(self, run: StepContext) -> list[tuple[float, PublishedNet]]:
        device, teachers = str(run.worker.device), []
        for one in self.options.teachers:
            if isinstance(one, OnnxTeacher):
                teachers.append((one.weight, read_onnx_net(one, device=device)))
            else:
                teachers.append((one.weight, read_expression_net(str(one), path=one.path, device=device)))
        if (folder := self.context.checkpoints.get("checkpoints")) is None:
            return teachers
        labelled = set(run.streams["labelled"].set.face_id.tolist())
        if known := sum(name in labelled for name in run.streams["unlabelled"].set.face_id):
            raise DataError(
                f"{known:,} faces of the source unlabelled are labelled ones, whose labels the source checkpoints "
                "may have learned; name a pool without them, or teachers of others alone"
            )
        for path in checkpoint_folders(folder):
            one = load_checkpoint(path, device=device)
            net = PublishedNet(str(path), one.model, one.classes, one.card.preprocessing, device=device)
            teachers.append((self.options.checkpoint_weight, net))
        return teachers

    def facts(self) -> dict[str, Any]:
        counts = {
            name: dict(zip(self.context.classes, self.get_buffer(name).tolist(), strict=True))
            for name in ("called", "used")
        }
        published = [one for one in self.options.teachers if isinstance(one, WeightSettings)]
        return {"pool_faces": counts, "teachers": {str(one): describe_origin(one) for one in published}}

    def notes(self) -> list[str]:
        notes = [
            line
            for one in self.options.teachers
            if isinstance(one, WeightSettings)
            for line in note_unknown(one, layout="members")
        ]
        if absent := [name for name, count in zip(self.context.classes, self.used.tolist(), strict=True) if not count]:
            notes.append(
                f"no pool face counts as {', '.join(absent)}; lower the option threshold or take other teachers"
            )
        return notes


def settle_targets(
    opinions: Float[Tensor, "n c"], options: Options
) -> tuple[Float[Tensor, "n c"], Float[Tensor, " n"], Int64[Tensor, " c"], Int64[Tensor, " c"]]:
    """Returns what opinions teach: targets and weights of faces, and of each class how many are it, and count."""
    p = (opinions / options.temperature).softmax(1)
    confidence, (labels, classes) = p.amax(1), (opinions.argmax(1), opinions.shape[1])
    counts = confidence > options.threshold
    called, used = labels.bincount(minlength=classes), labels[counts].bincount(minlength=classes)
    by_class = (used.sum() / ((used > 0).sum() * used.clamp(min=1)).double()) ** options.balance
    targets = functional.one_hot(labels, classes) if options.labels == "hard" else p
    return targets.half(), torch.where(counts, by_class[labels].float(), 0.0), called, used


build = EnsembleTeacher
