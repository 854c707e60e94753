"""Define what a training strategy is. The loop (fit.py) owns everything else.

A strategy is one file in `strategies/`, its name the file's, with a docstring that names its source, and

    class Options(Settings)                              its own settings
    def sources(options) -> dict[str, Source]            the streams that it reads; `labelled` is required
    def build(options, context) -> Strategy              makes its networks by `context.network(name)`

and, where it cannot use all settings of a training or network, `settle(config) -> config` with the others at what they
amount to; a recipe that gives one of those is refused. `LEARNS = False` says that it trains nothing: one model stands
for all seeds. `DRAWS = False` says that it learns and draws nothing from the seed: models of seeds with the same data
are the same, and trained once. `check(config, options, sources, classes)`, where there is one, raises a ConfigError
before any work for what does not go together: a recipe's settings, the options, the names of its sources and the
classes of the walk.

The loop hands `step` one batch of every stream and a `StepContext`. The strategy makes its own views of the crops,
computes its losses and calls `run.update(loss)` as often and in the order that its method wants; where gradients are
values of the method, `run.gradients` and `run.apply`. A method with several phases lists them in `phases`; one that
relabels or stops early does so in `end_epoch`.

A training may be killed at any moment and go on later. What must survive lies in the module's `state_dict`: networks,
and buffers for counters and relabelled targets. Several processes may train together, each on its part of every batch;
buffers must be equal in all of them (`run.gather`), and a mean over a batch must be `losses.weighted_mean`, which takes
it over all parts. Random draws come from `run.generator`, and differ among processes.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import Settings
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.training.augmentation import Augmentation, erase
from fer_pipeline.training.batch_norm import unrecorded_statistics
from fer_pipeline.training.batches import LABELLED, Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.losses import smoothed_cross_entropy, weighted_mean
from fer_pipeline.training.settings import (
    AugmentSettings,
    ModelSettings,
    Optimizer,
    Schedule,
    StrongViews,
    TrainingSettings,
)
from fer_pipeline.training.strong_views import cover_faces, rand_augment


@dataclass(frozen=True)
class Optimization:
    """What one optimiser changes and how; what is None is taken from the training's settings."""

    module: nn.Module
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Phase:
    """A part of a training with optimisers of its own, by name; learning rates begin anew with it.

    Without `epochs` and `steps` it is as long as the training's settings say. Only the `streams` that it names (of
    those that the recipe has) are read and given to `step`.
    """

    name: str
    optimizers: Mapping[str, Optimization]
    epochs: int | None = None
    steps: int | None = None
    streams: Collection[str] | None = None  # None: all

    def length(self, total_steps: int, steps_per_epoch: int) -> int:
        """Returns the most steps that it takes, where the training's settings say how many there are in all."""
        if self.steps is not None:
            return self.steps
        return total_steps if self.epochs is None else self.epochs * steps_per_epoch

    def reads(self, stream: str) -> bool:
        """Tells whether its steps get batches of a stream."""
        return self.streams is None or stream in self.streams


@dataclass(frozen=True)
class BuildContext:
    """What a strategy is built from.

    `class_weights` has the weights of each stream where the settings balance by weights; `images` counts each stream's
    images, so that a strategy can keep a row for each, and `class_counts` those of each class, of streams with labels;
    `checkpoints` has the folder of each source of trained networks, `data` the hash of every source, `weights` what the
    network starts from.
    """

    num_classes: int
    make_network: Callable[..., tuple[ExpressionNet, Preprocessing]]
    augmentation: Augmentation
    settings: TrainingSettings
    images: Mapping[str, int] = field(default_factory=dict)
    class_weights: Mapping[str, Float[Tensor, " c"]] = field(default_factory=dict)
    class_counts: Mapping[str, Int64[Tensor, " c"]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()  # by name
    weights: WeightSettings | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)

    def trained(self, source: str) -> tuple[ExpressionNet, Augmentation] | None:
        """The frozen network of a source of one, with views of its own; None where the recipe has none.

        Assign it to no module: the state of a training need not repeat what a file has.
        """
        if source not in self.checkpoints:
            return None
        loaded = load_checkpoint(self.checkpoints[source])
        return loaded.model.requires_grad_(False), Augmentation(self.augmentation.settings, loaded.card.preprocessing)

    def network(self, name: str = "main") -> ExpressionNet:
        """A network of the recipe: `main` has the same initial weights in every recipe, any other name its own draw."""
        return self.make_network(name)[0]

    def other_network(
        self, name: str, network: NetworkSettings, weights: WeightSettings | None = None
    ) -> tuple[ExpressionNet, Augmentation]:
        """A network of another architecture, with weights and preprocessing of its own (a frozen face network, say).

        `weights` must be an option of the strategy, of the type `WeightSettings`, not a path that it builds: only such
        files are hashed into the key of the model, so that other weights in the same place train anew.
        """
        model, preprocessing = self.make_network(name, network, weights)
        return model, Augmentation(self.augmentation.settings, preprocessing)

    def random_view(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, "n 3 s s"]:
        """A batch as randomly augmented network inputs."""
        return self.augmentation.random(batch.images, generator).contiguous(memory_format=torch.channels_last)

    def strong_view(self, batch: Batch, generator: torch.Generator, settings: StrongViews) -> Float[Tensor, "n 3 s s"]:
        """A batch as network inputs that are covered and changed by `settings` first, then augmented as all images."""
        images = cover_faces(batch.images, batch.landmarks, generator, kind=settings.cover, share=settings.cover_share)
        images = rand_augment(images, generator, operations=settings.operations, magnitude=settings.magnitude)
        inputs = self.augmentation.random(images, generator)
        inputs = erase(inputs, generator, AugmentSettings(erase=settings.erase)) if settings.erase else inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    def label_weights(self, stream: str, labels: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The weight of each label of a stream: that of its class where the settings balance by weights, else 1."""
        by_class = self.class_weights.get(stream)
        return torch.ones(len(labels), device=labels.device) if by_class is None else by_class.to(labels.device)[labels]

    def face_losses(
        self,
        network: nn.Module,
        batches: Mapping[str, Batch],
        names: Sequence[str],
        run: StepContext,
        *,
        smoothing: float = 0.0,
    ) -> tuple[dict[str, Float[Tensor, " _"]], dict[str, Float[Tensor, " _"]]]:
        """The cross-entropy of each face of some streams, by one forward pass of random views; their weights."""
        views = [self.random_view(batches[name], run.generator("augment", name)) for name in names]
        inputs = torch.cat(views).contiguous(memory_format=torch.channels_last)
        labels = torch.cat([batches[name].labels for name in names])
        values = smoothed_cross_entropy(network(inputs), labels, smoothing=smoothing)
        parts = values.split([len(batches[name]) for name in names])
        weights = {name: self.label_weights(name, batches[name].labels) for name in names}
        return dict(zip(names, parts, strict=True)), weights

    def pooled_loss(
        self, network: nn.Module, batches: Mapping[str, Batch], run: StepContext, *, smoothing: float = 0.0
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The mean cross-entropy over the faces of all `LABELLED` streams together, and that of each stream."""
        names = [name for name in LABELLED if name in batches]
        values, weights = self.face_losses(network, batches, names, run, smoothing=smoothing)
        pooled = weighted_mean(torch.cat([*values.values()]), torch.cat([*weights.values()]))
        return pooled, {name: weighted_mean(values[name], weights[name]) for name in names}

    def consistency(self, student: nn.Module, teacher: nn.Module, batch: Batch, run: StepContext) -> Float[Tensor, ""]:
        """The squared distance of the probabilities of two networks on a random view each, mean over the classes.

        The student's batch norms take the batch's statistics without recording them; no gradient goes to the teacher.
        """
        views = [
            self.random_view(batch, run.generator("augment", "unlabelled", name)) for name in ("student", "teacher")
        ]
        teacher.eval()
        with torch.no_grad():
            wanted = teacher(views[1]).float().softmax(1)
        with unrecorded_statistics(student, dropout=True):
            found = student(views[0]).float().softmax(1)
        return weighted_mean((found - wanted).square().mean(1))

    def label_losses(
        self, logits: Mapping[str, Float[Tensor, "n c"]], batches: Mapping[str, Batch], *, smoothing: float
    ) -> dict[str, Float[Tensor, ""]]:
        """The mean cross-entropy of streams with labels, weighted as the settings say."""
        losses = {}
        for name, scores in logits.items():
            labels = batches[name].labels
            values = smoothed_cross_entropy(scores, labels, smoothing=smoothing)
            losses[name] = weighted_mean(values, self.label_weights(name, labels))
        return losses


class Strategy(nn.Module):
    """A method of training: networks, and how they learn from one step's batches."""

    used_settings: frozenset[str] | None = None  # of a training, as the card records them; None: all
    orders: int = 1  # of every stream; a batch has the rows of each, one after the other (`Batch.part`)

    def phases(self) -> Sequence[Phase]:
        """The phases in order; by default one, in which `self.network` learns by the training's settings."""
        assert isinstance(self.network, nn.Module), "a strategy without phases of its own trains self.network"
        return [Phase("train", {"main": Optimization(self.network)})]

    def batch_sizes(self, batch: int, images: Mapping[str, int]) -> Mapping[str, int | None]:
        """Rows a step of every stream and order, given the settings' batch and the streams' images; 0 takes all.

        None leaves a stream out of the batches: the strategy itself reads its images, by `run.predict` or `run.pixels`.
        """
        return dict.fromkeys(images, batch)

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """Learns from one batch of every stream; what it returns is averaged over the epoch for the history."""
        raise NotImplementedError

    def end_epoch(self, run: StepContext, validation: Mapping[str, float]) -> bool:
        """Called after each epoch with the validation's figures, in every process; True ends the phase."""
        return False

    def facts(self) -> dict[str, Any]:
        """What the card says that the strategy found, beside the settings; it must survive in the `state_dict`.

        `mining_features` among it are those that are embedded.
        """
        return {}

    def notes(self) -> list[str]:
        """Warnings on what was found, for the card and the stage's summary."""
        return []

    def chosen_by(self, validation: Mapping[str, float]) -> Mapping[str, float] | None:
        """The figures by which an epoch is preferred to others, called after `end_epoch`; None where it may not be.

        Where no epoch may be chosen, the last is.
        """
        return validation

    def predictor(self) -> ExpressionNet:
        """The network that is validated and, in the end, kept."""
        assert isinstance(self.network, ExpressionNet), "a strategy without a predictor of its own keeps self.network"
        return self.network


def load_strategy(name: str) -> ModuleType:
    """The module of a strategy; ConfigError where its file has a fault or lacks a part of the contract."""
    place = f"strategies/{name}.py"
    module = load("fer_pipeline.strategies", name)
    if missing := [part for part in ("Options", "sources", "build") if not hasattr(module, part)]:
        raise ConfigError(
            f"{place} has no {missing[0]}; a strategy defines Options, sources(options) and build(options, context)"
        )
    if not (isinstance(module.Options, type) and issubclass(module.Options, Settings)):
        raise ConfigError(f"{place}: Options must be a class of settings, class Options(Settings)")
    return module


Config = TypeVar("Config", bound=ModelSettings)


def settle_settings(module: ModuleType, config: Config, given: Mapping[str, Collection[str]]) -> Config:
    """What of some settings a strategy uses; ConfigError where it cannot use one that was `given`, by its section."""
    if not hasattr(module, "settle"):
        return config
    used = module.settle(config)
    for section, names in given.items():
        for name in names:
            before, after = (getattr(getattr(one, section), name) for one in (config, used))
            if before != after:
                strategy = module.__name__.rpartition(".")[2]
                raise ConfigError(f"{section}.{name} has no effect with the strategy {strategy}; take it out")
    return used


def learns(module: ModuleType) -> bool:
    """Tells whether a strategy trains anything."""
    return getattr(module, "LEARNS", True)


def draws(module: ModuleType) -> bool:
    """Tells whether what a strategy trains depends on the seed, beside the data."""
    return getattr(module, "DRAWS", True)


def strategy_files(strategy: ModuleType) -> set[Path]:
    """A strategy's file, and those of the folder of strategies that it imports."""
    assert strategy.__file__, "a strategy is a file"
    files, waiting = set(), {Path(strategy.__file__)}
    while waiting:
        files.add(file := waiting.pop())
        names = re.findall(r"fer_pipeline\.strategies(?:\.| import )(\w+)", file.read_text(encoding="utf-8"))
        waiting |= {path for name in names if (path := file.with_name(f"{name}.py")).is_file()} - files
    return files
