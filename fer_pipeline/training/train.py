"""Run one training from settings to checkpoint: weights, card, history, and how fast it went."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings, preprocessing_of
from fer_pipeline.networks.weights import LoadReport, WeightSettings, load_weights
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Stream
from fer_pipeline.training.fit import Execution, TrainingJob, fit, length
from fer_pipeline.training.images import ShardImages
from fer_pipeline.training.losses import balancing_weights
from fer_pipeline.training.records import Progress
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.sources import Faces
from fer_pipeline.training.strategy import BuildContext

NOTEWORTHY_WAITING = 0.05  # of the time


class Speed(NamedTuple):
    """What share of its time a training waited for images, as a line, and what would make it faster.

    It speaks of a run and not of its result, so it stands in no artefact that is promised equal.
    """

    line: str
    advice: tuple[str, ...]


class TrainingResult(NamedTuple):
    """What a stage reports of a finished training."""

    fitted: Progress
    steps_per_own_epoch: int  # to see as many images as its own training set has
    images: dict[str, int]
    speed: Speed


def train(
    job: TrainingJob, sets: Mapping[str, ImageSet], validation: ImageSet | None, execution: Execution
) -> TrainingResult:
    """Trains a strategy on the sets of its streams and writes the checkpoint into the execution's folder."""
    settings, num_classes = job.settings, len(job.classes)

    def make_network(
        name: str, network: NetworkSettings = job.network, weights: WeightSettings | None = job.weights
    ) -> tuple[ExpressionNet, Preprocessing, LoadReport | None]:
        """`main` has the same initial weights for every recipe of a seed, any other name a draw of its own."""
        network = network.sized(job.network.size or 0)
        model = build(network, num_classes, job.seed if name == "main" else derive(job.seed, "network", name))
        report = load_weights(model, network, weights) if weights else None
        return model, preprocessing_of(network, report.normalisation if report else None), report

    main = make_network("main")
    preprocessing, report = main[1:]
    sets = {name: images.as_inputs_of(preprocessing) for name, images in sets.items()}
    images = {name: len(one) for name, one in sets.items()}
    # `training.balance` is about streams of faces with labels
    balanced = {name for name, source in job.sources.items() if isinstance(source, Faces) and source.label is not None}
    balanced &= set(sets)
    by_weights = balanced if settings.balance == "weights" else ()
    context = BuildContext(
        num_classes=num_classes,
        make_network=lambda name, *other: main[:2] if name == "main" and not other else make_network(name, *other)[:2],
        augmentation=Augmentation(settings.augment, preprocessing),
        settings=settings,
        images=images,
        class_weights={name: balancing_weights(sets[name].counts(num_classes)) for name in by_weights},
    )
    with torch.random.fork_rng():  # what a strategy draws itself is the seed's too
        torch.manual_seed(derive(job.seed, "build"))
        strategy = job.build(context)
    sizes = strategy.batch_sizes(settings.batch, images)
    if set(sizes) != set(images) or min(sizes.values()) < 0 or max(sizes.values()) == 0:
        raise ConfigError(f"the strategy's batch_sizes gave {sizes}, expected rows for each of {', '.join(images)}")
    streams = {
        name: Stream(
            one,
            sizes[name],
            seed=derive(job.seed, "stream", name),
            balanced=settings.balance == "sampling" and name in balanced,
            num_classes=num_classes,
            order=settings.order,
            buffer_rows=settings.buffer_rows,
        )
        for name, one in sets.items()
    }
    model, fitted = fit(job, strategy, streams, validation, preprocessing, execution)
    drawn = [name for name in sets if sizes[name]]
    own_epoch = math.ceil(sum(images[name] for name in drawn) / sum(sizes[name] for name in drawn))
    _, steps_per_epoch = length(settings, images["labelled"])
    worker = execution.worker
    training = {
        **job.about,
        "seed": job.seed,
        "settings": settings.model_dump(mode="json"),
        "weights": report.line if report else None,
        "images": images,
        "batch_sizes": sizes,
        "steps": fitted.steps,
        "epochs_of_labelled": fitted.steps / steps_per_epoch,
        "epochs_of_own_set": fitted.steps / own_epoch,
        "chosen_epoch": fitted.epoch,
        "notes": [worker.note] if worker.note else [],
    }
    if worker.is_leader:
        card = Card(
            network=job.network,
            classes=job.classes,
            preprocessing=preprocessing,
            training=training,
            data=dict(job.data),
        )
        save_checkpoint(execution.folder, model, card)
    speed = measure_speed(streams, waited=fitted.waited, seconds=fitted.seconds)
    return TrainingResult(fitted, own_epoch, images, speed)


def measure_speed(streams: Mapping[str, Stream], *, waited: float, seconds: float) -> Speed:
    """The speed, with one line of advice for each fault in how the images are held or fed."""
    line = f"waited for images {waited / max(seconds, 1e-9):.1%} of the time"
    images = {name: stream.set.images for name, stream in streams.items()}
    advice = [
        f"the {len(streams[name].set):,} images of {name} do not fit into memory and every step reads them from all "
        "over the shards; set training.order: blocks, or a larger resources.memory_gb"
        for name, held in images.items()
        if isinstance(held, ShardImages) and not held.keeps_all and streams[name].order == "rows"
    ]
    if waited > NOTEWORTHY_WAITING * seconds and any(isinstance(held, ShardImages) for held in images.values()):
        advice.append(
            f"the training {line}; raise resources.workers or, so that images are decoded once, resources.memory_gb"
        )
    return Speed(line, tuple(advice))
