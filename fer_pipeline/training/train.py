"""Run one training from settings to checkpoint: weights, card, history, and how fast it went."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.cards import Card
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings, preprocessing_of
from fer_pipeline.networks.weights import LoadReport, WeightSettings, load_weights
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Stream, make_stream
from fer_pipeline.training.fit import Execution, FitResult, TrainingJob, fit, length
from fer_pipeline.training.losses import balancing_weights
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.strategy import BuildContext

NOTEWORTHY_WAITING = 0.05  # of the time


@dataclass(frozen=True)
class Speed:
    """Seconds of training steps, those of them in which the loop had no images, and what would make it faster.

    They speak of a run and not of its result, so they stand in no artefact that is promised equal.
    """

    seconds: float
    waited: float
    advice: tuple[str, ...]

    @property
    def line(self) -> str:
        """For the line of a stage."""
        return f"waited for images {self.waited / max(self.seconds, 1e-9):.1%} of the time"


@dataclass(frozen=True)
class TrainingResult:
    """What a stage reports of a finished training."""

    fitted: FitResult
    weights: LoadReport | None
    steps_per_own_epoch: int  # to see as many images as its own training set has
    images: dict[str, int]
    speed: Speed


def train(
    job: TrainingJob, sets: Mapping[str, ImageSet], validation: ImageSet | None, execution: Execution
) -> TrainingResult:
    """Trains a strategy on the sets of its streams and writes the checkpoint into the execution's folder."""
    main, preprocessing, report = _initial_network(job, "main", job.network, job.weights)
    sets = {name: images.as_inputs_of(preprocessing) for name, images in sets.items()}
    num_classes = len(job.classes)
    images = {name: len(one) for name, one in sets.items()}

    def make_network(
        name: str, network: NetworkSettings | None = None, weights: WeightSettings | None = None
    ) -> tuple[ExpressionNet, Preprocessing]:
        if network is not None:
            return _initial_network(job, name, network.sized(preprocessing.size), weights)[:2]
        return (main, preprocessing) if name == "main" else _initial_network(job, name, job.network, job.weights)[:2]

    context = BuildContext(
        num_classes=num_classes,
        make_network=make_network,
        augmentation=Augmentation(job.settings.augment, preprocessing),
        settings=job.settings,
        images=images,
        class_weights=_class_weights(job, sets, num_classes),
    )
    with torch.random.fork_rng():  # what a strategy draws itself is the seed's too
        torch.manual_seed(derive(job.seed, "build"))
        strategy = job.build(context)
    sizes = strategy.batch_sizes(job.settings.batch, images)
    if set(sizes) != set(images) or min(sizes.values()) < 0 or max(sizes.values()) == 0:
        raise ConfigError(f"the strategy's batch_sizes gave {sizes}, expected rows for each of {', '.join(images)}")
    streams = {
        name: make_stream(
            one,
            sizes[name],
            seed=derive(job.seed, "stream", name),
            settings=job.settings,
            classes=num_classes if job.sources[name].balanced else None,
        )
        for name, one in sets.items()
    }
    fitted = fit(job, strategy, streams, validation, preprocessing, execution)
    drawn = [name for name in sets if sizes[name]]
    own_epoch = math.ceil(sum(images[name] for name in drawn) / sum(sizes[name] for name in drawn))
    _, steps_per_epoch = length(job.settings, images["labelled"])
    training = {
        **job.about,
        "seed": job.seed,
        "settings": job.settings.model_dump(mode="json"),
        "weights": report.line if report else None,
        "images": images,
        "batch_sizes": sizes,
        "steps": fitted.steps,
        "epochs_of_labelled": fitted.steps / steps_per_epoch,
        "epochs_of_own_set": fitted.steps / own_epoch,
        "chosen_epoch": fitted.epoch,
        "notes": list(fitted.notes),
    }
    if execution.worker.is_leader:
        card = Card(
            network=job.network,
            classes=job.classes,
            preprocessing=preprocessing,
            training=training,
            data=dict(job.data),
        )
        save_checkpoint(execution.folder, fitted.model, card)
    speed = measure_speed(streams, waited=fitted.waited, seconds=fitted.seconds)
    return TrainingResult(fitted, report, own_epoch, images, speed)


def measure_speed(streams: Mapping[str, Stream], *, waited: float, seconds: float) -> Speed:
    """The speed, with one line of advice for each fault in how the images are held or fed."""
    speed = Speed(seconds, waited, ())
    advice = [
        f"the {len(stream.set):,} images of {name} do not fit into memory and every step reads them from all over the "
        "shards; set training.order: blocks, or a larger resources.memory_gb"
        for name, stream in streams.items()
        if stream.reads_at_random
    ]
    if waited > NOTEWORTHY_WAITING * seconds and any(stream.set.images.streamed for stream in streams.values()):
        advice.append(
            f"the training {speed.line}; raise resources.workers or, so that images are decoded once, "
            "resources.memory_gb"
        )
    return Speed(seconds, waited, tuple(advice))


def _initial_network(
    job: TrainingJob, name: str, network: NetworkSettings, weights: WeightSettings | None
) -> tuple[ExpressionNet, Preprocessing, LoadReport | None]:
    """`main` has the same initial weights for every recipe of a seed, any other name a draw of its own."""
    model = build(network, len(job.classes), job.seed if name == "main" else derive(job.seed, "network", name))
    report = load_weights(model, network, weights) if weights else None
    return model, preprocessing_of(network, report.normalisation if report else None), report


def _class_weights(job: TrainingJob, sets: Mapping[str, ImageSet], num_classes: int) -> dict[str, Float[Tensor, " c"]]:
    if job.settings.balance != "weights":
        return {}
    return {
        name: balancing_weights(images.counts(num_classes))
        for name, images in sets.items()
        if job.sources[name].balanced
    }
