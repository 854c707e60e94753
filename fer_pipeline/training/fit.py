"""Train a strategy on its streams: the loop in plain sight.

Per phase: optimisers. Per epoch: steps, validation, one row of history, the state on disk. Per step: a learning rate,
one batch of every stream, `strategy.step`. A training that was killed goes on from its last whole epoch and, on a CPU,
ends with the very bytes of one that was not. The validation images are a part of the training data; no test split comes
near this loop.
"""

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fer_pipeline.artifacts.history import Row, write_history
from fer_pipeline.core.errors import ConfigError, PipelineError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Seen
from fer_pipeline.networks.checkpoints import save_checkpoint
from fer_pipeline.networks.devices import deterministic
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import seen_by
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.networks.weights import LoadReport, WeightSettings, initial_network, own_side
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.averaging import averaged_copy, update_average
from fer_pipeline.training.batch_norm import share_statistics
from fer_pipeline.training.batches import Loader, Stream
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.images import ShardImages
from fer_pipeline.training.losses import balancing_weights
from fer_pipeline.training.optimizers import build_optimizer, loaded_parameters, set_rates
from fer_pipeline.training.records import Progress, log_row, quiet_live, restore, restore_one
from fer_pipeline.training.sets import ImageSet, balance_sets
from fer_pipeline.training.settings import Cosine, TrainingSettings, Until
from fer_pipeline.training.shares import Advance, ignore_steps
from fer_pipeline.training.sources import Faces, Source
from fer_pipeline.training.strategy import BuildContext, Phase, Strategy
from fer_pipeline.training.validation import better, find_end, validate
from fer_pipeline.training.worker import Worker

NOTEWORTHY_WAITING = 0.05  # of the time of steps
STEPS_BETWEEN_CHECKS = 50  # of the losses for NaN; each check waits for the device


@dataclass(frozen=True)
class TrainingJob:
    """All that decides what a training makes.

    `network` has its size written out; `sources` are what the strategy declares; `about` and `data` (hashes
    of what is read) are noted in the checkpoint's card, and `seen`, what registered weights behind it were trained on.
    `checkpoints` are folders of trained networks, by their source.
    """

    network: NetworkSettings
    weights: WeightSettings | None
    classes: tuple[str, ...]
    seed: int
    settings: TrainingSettings
    build: Callable[[BuildContext], Strategy]
    sources: Mapping[str, Source]
    about: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    seen: Mapping[str, Seen] = field(default_factory=dict)


@dataclass(frozen=True)
class Execution:
    """Where a training runs: its process, the folders of its state and its results, who hears of finished steps."""

    worker: Worker
    state: Path
    folder: Path
    advance: Advance = ignore_steps
    announced: int = 0  # steps that whoever hears of them has in the total


def length(settings: TrainingSettings, num_labelled: int) -> tuple[int, int]:
    """Steps in all and steps an epoch, from the number of labelled images alone: equal for every recipe.

    Where the validation says when a training ends, the steps are the most that it may take.
    """
    steps_per_epoch = math.ceil(num_labelled / settings.batch)
    epochs = settings.until.at_most if settings.until else settings.epochs
    total = settings.steps if epochs is None else epochs * steps_per_epoch
    assert total is not None
    return total, steps_per_epoch


def fit(
    job: TrainingJob,
    strategy: Strategy,
    streams: Mapping[str, Stream],
    validation: ImageSet | None,
    preprocessing: Preprocessing,
    execution: Execution,
) -> tuple[ExpressionNet, Progress]:
    """Trains `strategy` and gives the chosen network, on the CPU, with how it came about.

    The history is written into the folder and, after every epoch, what a resume needs as the state. Of several
    processes at once, each calls this with its own worker; the leader writes.
    """
    settings, worker, advance = job.settings, execution.worker, execution.advance
    assert settings.until is None or validation is not None, "only a validation says when to end"
    total_steps, per_epoch = length(settings, len(streams["labelled"].set))
    streams = {name: stream.for_worker(worker) for name, stream in streams.items()}
    loader = Loader(streams, worker.device)
    with deterministic(settings.threads):
        share_statistics(strategy, worker)
        strategy.to(device=worker.device)
        strategy.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        average = averaged_copy(strategy.predictor()) if settings.average else None
        parts: dict[str, Any] = {"strategy": strategy, "precision": worker.fabric._precision}
        parts |= {"average": average} if average else {}
        progress, saved_optimizers = restore(execution.state, parts, average or strategy.predictor(), worker.device)
        live = quiet_live(execution.folder) if worker.is_leader else None
        for row in progress.history if live else ():
            log_row(live, row)
        run = StepContext(worker, streams, preprocessing, seed=job.seed, clip=settings.clip, steps_per_epoch=per_epoch)
        run.advance = advance
        phases = strategy.phases()
        lengths = [phase.length(total_steps, per_epoch) for phase in phases]
        planned = progress.steps - progress.phase_epochs * per_epoch + sum(lengths[progress.phase :])
        advance(progress.steps, earlier=True, planned=planned - execution.announced)

        for number, (phase, phase_steps) in enumerate(zip(phases, lengths, strict=True)):
            if number < progress.phase:
                continue
            if phase_steps == 0:  # left out by the strategy's options
                progress.phase, progress.phase_epochs = number + 1, 0
                continue
            until = settings.until if phase.epochs is phase.steps is None else None
            span = until.at_least * per_epoch if until else phase_steps  # of the schedule
            _begin_phase(run, phase, settings, span, saved_optimizers, execution.state, loaded_parameters(strategy))
            saved_optimizers = {}  # those of the next phase are fresh
            first_step = progress.steps - progress.phase_epochs * per_epoch  # of the phase, among all
            with closing(loader.batches(range(progress.steps, first_step + phase_steps), phase.reads)) as coming:
                for epoch in range(progress.phase_epochs, math.ceil(phase_steps / per_epoch)):
                    falling = _find_end(progress, phase, settings, until)[:2] if until else None
                    strategy.train()
                    sums: dict[str, Tensor] = {}
                    first, last = epoch * per_epoch, min((epoch + 1) * per_epoch, phase_steps)
                    started, waited = time.perf_counter(), loader.waited
                    for step in range(first, last):
                        run.step, run.phase_step, run.epoch = first_step + step, step, epoch
                        set_rates(run, phase, settings, falling)
                        torch.manual_seed(run.child_seed())  # dropout's numbers: a function of the step like all else
                        batches = next(coming)
                        with worker.fabric.autocast():
                            losses = strategy.step(batches, run)
                        for name, loss in losses.items():
                            sums[name] = sums.get(name, 0.0) + loss.detach().double()
                        if average is not None and settings.average:
                            decay = min(settings.average, (1 + run.step) / (10 + run.step))
                            update_average(average, strategy.predictor(), decay=decay)
                        if step % STEPS_BETWEEN_CHECKS == 0 or step == last - 1:
                            _refuse_nan(sums, epoch=len(progress.history))
                        advance(1)
                    sums = {name: worker.mean(value) for name, value in sums.items()}
                    progress.seconds += time.perf_counter() - started
                    progress.waited += loader.waited - waited
                    progress.steps, progress.phase_epochs = first_step + last, epoch + 1

                    metrics: dict[str, float] = {}
                    model = average or strategy.predictor()
                    if validation is not None and worker.is_leader:
                        metrics = validate(model, validation, preprocessing, job.classes, worker.device)
                    metrics = worker.broadcast(metrics)
                    ended = bool(worker.broadcast(strategy.end_epoch(run, metrics))) or last == phase_steps
                    row: Row = {
                        "epoch": len(progress.history) + 1,
                        "steps": progress.steps,
                        "learning_rate": run.rate(),
                    }
                    row |= {"phase": number + 1} if len(phases) > 1 else {}
                    row |= {f"train_{name}": float(value) / (last - first) for name, value in sums.items()}
                    row |= {f"validation_{name}": value for name, value in metrics.items()}
                    progress.history.append(row)
                    if until:
                        _, end, progress.stopped_rising = _find_end(progress, phase, settings, until)
                        ended = ended or epoch + 1 >= end
                    figures = dict(strategy.chosen_by(metrics) or {}) if metrics else {}
                    if figures and settings.select == "best" and better(figures, progress.best, settings.monitor):
                        progress.best, progress.epoch = figures, len(progress.history)
                        progress.best_weights = copy.deepcopy(model.state_dict())
                    if ended:
                        progress.phase, progress.phase_epochs = number + 1, 0
                    if ended and number + 1 < len(phases):  # the epoch is chosen among those of the last phase alone
                        progress.best, progress.epoch, progress.best_weights = None, 0, None
                    if live:
                        log_row(live, row)
                        progress.save(execution.state, parts, {} if ended else run.optimizers)
                    if ended:
                        known, planned = planned, progress.steps + sum(lengths[number + 1 :])
                        advance(0, planned=planned - known)
                        break

        if live:
            write_history(execution.folder, progress.history)
            live.end()
        model = copy.deepcopy(average or strategy.predictor())
        if progress.best_weights is not None:
            model.load_state_dict(progress.best_weights)
    progress.epoch = progress.epoch or len(progress.history)
    return model.to(device="cpu").eval(), progress


def _begin_phase(
    run: StepContext,
    phase: Phase,
    settings: TrainingSettings,
    phase_steps: int,
    saved: Mapping[str, Any],
    state: Path,
    old: Collection[int],
) -> None:
    parameters = [id(p) for plan in phase.optimizers.values() for p in plan.module.parameters() if p.requires_grad]
    assert len(parameters) == len(set(parameters)), f"two optimisers of the phase {phase.name} share a weight"
    run.phase, run.phase_steps = phase.name, phase_steps
    run.modules, run.optimizers = {name: plan.module for name, plan in phase.optimizers.items()}, {}
    for name, plan in phase.optimizers.items():
        own, rate = plan.optimizer or settings.optimizer, settings.old_layers_rate
        optimizer = build_optimizer(plan.module.parameters(), own, old=old, old_rate=rate)
        if saved:
            restore_one(state, optimizer, name, saved)
        run.optimizers[name] = run.worker.fabric.setup_optimizers(optimizer)


def _find_end(
    progress: Progress, phase: Phase, settings: TrainingSettings, until: Until
) -> tuple[int | None, int, bool]:
    """`find_end` for the phase in progress."""
    rows = progress.history[len(progress.history) - progress.phase_epochs :]
    values = [row[f"validation_{settings.monitor}"] for row in rows]
    cosine = any(isinstance(plan.schedule or settings.schedule, Cosine) for plan in phase.optimizers.values())
    return find_end(values, until, monitor=settings.monitor, cosine=cosine)


def _refuse_nan(sums: Mapping[str, Tensor], *, epoch: int) -> None:
    if broken := [name for name, value in sums.items() if not torch.isfinite(value)]:
        raise PipelineError(
            f"the loss {broken[0]} became NaN or infinite in epoch {epoch + 1}; lower the learning rate, "
            "set training.clip or add warmup_epochs"
        )


class TrainingResult(NamedTuple):
    fitted: Progress
    steps_per_own_epoch: int  # to see as many images as its own training set has
    images: dict[str, int]
    times_seen: dict[str, float]  # each image of a stream, in the mean, by each network that has an order of its own
    advice: tuple[str, ...]  # of `advise`


def train(
    job: TrainingJob, sets: Mapping[str, ImageSet], validation: ImageSet | None, execution: Execution
) -> TrainingResult:
    """Trains a strategy on the sets of its streams and writes the checkpoint into the execution's folder."""
    settings, num_classes = job.settings, len(job.classes)

    def make_network(
        name: str, network: NetworkSettings = job.network, weights: WeightSettings | None = job.weights
    ) -> tuple[ExpressionNet, Preprocessing, LoadReport | None]:
        """`main` has the same initial weights for every recipe of a seed, any other name a draw of its own."""
        is_own, network = network is job.network, network.sized(own_side(weights) or job.network.size or 0)
        seed = job.seed if name == "main" else derive(job.seed, "network", name)
        model, preprocessing, report = initial_network(network, weights, num_classes=num_classes, seed=seed)
        if is_own and report:
            model.loaded = frozenset(report.loaded) & dict(model.named_parameters()).keys()
            if settings.frozen_until:
                model.freeze_before(settings.frozen_until, size=network.size or 0)
            if settings.old_layers_rate == 0:
                model.freeze_loaded()
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise ConfigError(
                    "training.old_layers_rate: 0 leaves nothing to learn, since the weights fill the whole network; "
                    "set weights.head: false, or a rate above 0"
                )
        return model, preprocessing, report

    main = make_network("main")
    preprocessing, report = main[1:]
    sets = {name: images.as_inputs_of(preprocessing) for name, images in sets.items()}
    # `training.balance` is about streams of faces with labels
    balanced = {name for name in sets if isinstance(source := job.sources[name], Faces) and source.label is not None}
    equal = balanced if settings.balance == "dataset" else ()
    sets, balance_notes = balance_sets(sets, equal, per_class=settings.balance_per_class, seed=job.seed)
    images = {name: len(one) for name, one in sets.items()}
    by_weights = balanced if settings.balance == "weights" else ()
    context = BuildContext(
        num_classes=num_classes,
        make_network=lambda name, *other: main[:2] if name == "main" and not other else make_network(name, *other)[:2],
        augmentation=Augmentation(settings.augment, preprocessing),
        settings=settings,
        images=images,
        class_weights={name: balancing_weights(sets[name].counts(num_classes)) for name in by_weights},
        classes=job.classes,
        weights=job.weights,
        data=job.data,
        checkpoints=job.checkpoints,
        class_counts={name: torch.from_numpy(sets[name].counts(num_classes)) for name in balanced},
    )
    with torch.random.fork_rng():  # what a strategy draws itself is the seed's too
        torch.manual_seed(derive(job.seed, "build"))
        strategy = job.build(context)
    sizes = strategy.batch_sizes(settings.batch, images)
    given = [size for size in sizes.values() if size is not None]
    if set(sizes) != set(images) or min(given, default=0) < 0 or max(given, default=0) == 0:
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
            orders=strategy.orders,
        )
        for name, one in sets.items()
    }
    model, fitted = fit(job, strategy, streams, validation, preprocessing, execution)
    drawn = {name: size for name, size in sizes.items() if size}
    own_epoch = math.ceil(sum(images[name] for name in drawn) / sum(drawn.values()))
    worker = execution.worker
    often = {name: 0.0 if size is None else size / images[name] or 1.0 for name, size in sizes.items()}  # a step
    taken = list(zip(phases := strategy.phases(), fitted.steps_of_phases(len(phases)), strict=True))
    seen = {name: sum(steps for phase, steps in taken if phase.reads(name)) * often[name] for name in images}
    used = None if strategy.used_settings is None else set(strategy.used_settings)
    training = {
        **job.about,
        "seed": job.about.get("seed", job.seed),
        "settings": settings.model_dump(mode="json", include=used),
        "weights": report.line if report else None,
        **({"pretrained": report.origin} if report else {}),
        "images": images,
        "batch_sizes": sizes,
        "steps": fitted.steps,
        "epochs_of_labelled": fitted.steps / length(settings, images["labelled"])[1],
        "epochs_of_own_set": fitted.steps / own_epoch,
        "times_seen": seen,
        "stopped_rising": fitted.stopped_rising,
        "chosen_epoch": fitted.epoch,
        "notes": [
            *([worker.note] if worker.note else []),
            *(report.notes if report else []),
            *balance_notes,
            *strategy.notes(),
        ],
    }
    facts = strategy.facts()
    mining_features = facts.pop("mining_features", None)
    training |= {"found": facts} if facts else {}
    if worker.is_leader:
        card = Card(
            network=job.network,
            classes=job.classes,
            preprocessing=preprocessing,
            mining_features=mining_features,
            confidence=model.confidence is not None,
            training=training,
            data={**job.data},
            seen={**job.seen},
        )
        save_checkpoint(execution.folder, model, card.model_copy(update={"seen": seen_by(card)}))
    return TrainingResult(fitted, own_epoch, images, seen, advise(streams, fitted.waited, fitted.seconds))


def describe_waiting(waited: float, seconds: float) -> str:
    """Says what share of its time a training waited for images."""
    return f"waited for images {waited / max(seconds, 1e-9):.1%} of the time"


def advise(streams: Mapping[str, Stream], waited: float, seconds: float) -> tuple[str, ...]:
    """Says what would make a training faster: one line for each fault in how the images are held or fed.

    It speaks of a run and not of its result, so it stands in no artefact that is promised equal.
    """
    images = {name: stream.set.images for name, stream in streams.items()}
    advice = [
        f"the {len(streams[name].set):,} images of {name} do not fit into memory and every step reads them from all "
        "over the shards; set training.order: blocks, or a larger resources.memory_gb"
        for name, held in images.items()
        if isinstance(held, ShardImages) and not held.keeps_all and streams[name].order == "rows"
    ]
    if waited > NOTEWORTHY_WAITING * seconds and any(isinstance(held, ShardImages) for held in images.values()):
        advice.append(
            f"the training {describe_waiting(waited, seconds)}; raise resources.workers or, so that images are decoded "
            "once, resources.memory_gb"
        )
    return tuple(advice)
