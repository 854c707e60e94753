"""Take a published expression network as it comes, so that what a user would pick instead stands in the same table.

Nothing is learned. The network's probabilities of the walk's classes are divided by their sum, as if the face showed
one of them, whatever else the network knows. It is the single member of `joined`, so that it sees the crop by its own
template and size, whatever the other recipes were trained on:

    overrides: {network: {name: joined, members: [{name: fer_expressions}]}}

The labelled faces are looked at and not learned from: `found` in the card says how many of them the network gets right.
One model stands for all seeds. Source: ours, 2026.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.settings import Settings
from fer_pipeline.evaluation.metrics import confusion_matrix, measure
from fer_pipeline.networks.backbones.joined import Joined, classes_of
from fer_pipeline.networks.pretrained import find_columns
from fer_pipeline.networks.settings import Member, NetworkSettings
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.settings import ModelSettings, TrainingSettings
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Optimization, Phase, Strategy

LEARNS = DRAWS = False
ONE = "set network: {name: joined, members: [{name: …}]} in the recipe's overrides, or onnx: in the place of name"
Config = TypeVar("Config", bound=ModelSettings)


class Options(Settings):
    """It has none."""


def sources(options: Options) -> dict[str, Source]:
    return {"labelled": Faces(required=True)}


def settle(config: Config) -> Config:
    """Returns the settings with what would change a network that is taken as it comes at what it amounts to here."""
    members = config.network.members
    if len(members) != 1 or not classes_of(members[0]):
        found = ", ".join(map(str, members)) or config.network.name
        raise ConfigError(f"the strategy published takes one expression network, found {found}; {ONE}")
    training = TrainingSettings.without_steps(config.training.threads)
    network = NetworkSettings(name=config.network.name, members=members, floor=None)
    return config.model_copy(update={"network": network, "training": training, "label_noise": None})


def check(config: ModelSettings, options: Options, sources: Collection[str], classes: Sequence[str]) -> None:
    """Refuses classes that the network does not know: a probability of zero would say that it never sees them."""
    choose_columns(config.network.members[0], classes)


def choose_columns(member: Member, classes: Sequence[str]) -> list[int]:
    """Returns where among the network's outputs the walk's classes are; ConfigError for one that is not there."""
    return find_columns(str(member), classes_of(member), [canonical(name) for name in classes])


class Published(Strategy):
    used_settings = frozenset({"threads"})
    confusion: Tensor

    def __init__(self, options: Options, context: BuildContext) -> None:
        super().__init__()
        self.classes, self.network = context.classes, context.network().requires_grad_(False)
        backbone = self.network.backbone
        assert isinstance(backbone, Joined), "`settle` refuses other networks"
        columns = choose_columns(backbone.settings[0], context.classes)
        self.network.head.requires_grad_(True)  # a phase has something to change; no step does
        with torch.no_grad():  # of log-probabilities: the soft-max of some of them divides by their sum
            self.network.head.bias.zero_()
            self.network.head.weight.zero_()
            self.network.head.weight[range(len(columns)), columns] = 1
        self.register_buffer("confusion", torch.zeros(len(columns), len(columns), dtype=torch.int64))

    def phases(self) -> Sequence[Phase]:
        return [Phase("look", {"main": Optimization(self.network.head)}, steps=1)]

    def step(self, batches: Mapping[str, Batch], run: StepContext) -> dict[str, Tensor]:
        """Predicts all labelled faces, and changes nothing; the batches are not looked at."""
        labels = run.streams["labelled"].set.labels
        probabilities = run.predict("labelled", self.network).double()
        found = confusion_matrix(labels.numpy(), probabilities.argmax(1).numpy(), num_classes=len(self.classes))
        self.confusion.copy_(torch.from_numpy(found))
        chosen = probabilities.gather(1, labels[:, None]).clamp(min=torch.finfo(torch.float64).tiny)
        loss = -chosen.log().mean().to(run.worker.device)
        return {"loss": loss, "labelled": loss}

    def facts(self) -> dict[str, Any]:
        figures = measure(self.confusion.cpu().numpy(), classes=self.classes)
        return {"labelled_accuracy": figures.accuracy, "labelled_mean_class_accuracy": figures.mean_class_accuracy}


build = Published
