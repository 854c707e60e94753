"""One training from settings to checkpoint: image sets and a strategy in; weights, card, history and seconds out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.cards import Card
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings, preprocessing_of
from fer_pipeline.networks.weights import LoadReport, WeightSettings, load_weights
from fer_pipeline.training.advice import Speed, speed_of
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import stream_of
from fer_pipeline.training.fabric import Place
from fer_pipeline.training.fit import Fitted, fit, length
from fer_pipeline.training.losses import balancing_weights
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.strategy import Ingredients, Strategy

BALANCED = ("labelled", "auxiliary")  # streams that `balance` is about


@dataclass(frozen=True)
class Start:
    """Where a training starts: a sized network, its initial weights drawn from a seed or read from a file."""

    network: NetworkSettings
    weights: WeightSettings | None
    classes: tuple[str, ...]
    seed: int

    def model(self, name: str = "main") -> tuple[ExpressionNet, LoadReport | None]:
        """The network `name`: `main` is the same for every recipe of a seed, any other has a draw of its own."""
        seed = self.seed if name == "main" else derive(self.seed, "network", name)
        model = build(self.network, len(self.classes), seed)
        return model, load_weights(model, self.network, self.weights) if self.weights else None


@dataclass(frozen=True)
class Trained:
    """What a stage tells of a finished training."""

    fitted: Fitted
    weights: LoadReport | None
    steps_per_own_epoch: int  # to see as many images as its own training set has
    images: dict[str, int]
    speed: Speed


def train(
    start: Start,
    strategy: Callable[[Ingredients], Strategy],
    sets: Mapping[str, ImageSet],
    validation: ImageSet | None,
    *,
    settings: TrainingSettings,
    device: str | Place,
    state: Path,
    folder: Path,
    about: Mapping[str, Any],
    data: Mapping[str, str],
    advance: Callable[[int], None] = lambda steps: None,
    prepare: Callable[[Mapping[str, ImageSet], Preprocessing], Mapping[str, ImageSet]] = lambda sets, _: sets,
) -> Trained:
    """Trains and writes the checkpoint into `folder`; `prepare` may fit the sets to the preprocessing."""
    main, report = start.model()
    preprocessing = preprocessing_of(start.network, report.normalisation if report else None)
    sets = prepare(sets, preprocessing)
    num_classes = len(start.classes)
    ingredients = Ingredients(
        num_classes=num_classes,
        network=lambda name: main if name == "main" else start.model(name)[0],
        augmentation=Augmentation(settings.augment, preprocessing),
        class_weights=_class_weights(sets, settings, num_classes),
    )
    learner = strategy(ingredients)
    sizes = learner.batch_sizes(settings.batch, {name: len(images) for name, images in sets.items()})
    streams = {
        name: stream_of(
            images,
            sizes[name],
            seed=derive(start.seed, "stream", name),
            settings=settings,
            classes=num_classes if name in BALANCED else None,
        )
        for name, images in sets.items()
    }
    fitted = fit(
        learner,
        streams,
        validation,
        settings=settings,
        preprocessing=preprocessing,
        classes=start.classes,
        seed=start.seed,
        device=device,
        state=state,
        folder=folder,
        advance=advance,
    )
    drawn = [name for name in sets if sizes[name]]
    own = math.ceil(sum(len(sets[name]) for name in drawn) / sum(sizes[name] for name in drawn))
    _, steps_per_epoch = length(settings, len(sets["labelled"]))
    images = {name: len(found) for name, found in sets.items()}
    training = {
        **about,
        "seed": start.seed,
        "settings": settings.model_dump(mode="json"),
        "weights": report.line if report else None,
        "images": images,
        "batch_sizes": sizes,
        "steps": fitted.steps,
        "epochs_of_labelled": fitted.steps / steps_per_epoch,
        "epochs_of_own_set": fitted.steps / own,
        "chosen_epoch": fitted.epoch,
        "notes": list(fitted.notes),
    }
    card = Card(
        network=start.network,
        classes=start.classes,
        preprocessing=preprocessing,
        training=training,
        data=dict(data),
    )
    if not isinstance(device, Place) or device.leads:
        save_checkpoint(folder, fitted.model, card)
    speed = speed_of(streams, waited=fitted.waited, seconds=fitted.seconds)
    return Trained(fitted, report, own, images, speed)


def _class_weights(
    sets: Mapping[str, ImageSet], settings: TrainingSettings, num_classes: int
) -> dict[str, Float[Tensor, " c"]]:
    if settings.balance != "weights":
        return {}
    return {name: balancing_weights(sets[name].counts(num_classes)) for name in BALANCED if name in sets}
