"""Train a strategy on its streams: the loop in plain sight.

Per phase: optimisers. Per epoch: steps, validation, one row of history, the state on disk. Per step: a learning rate,
one batch of every stream, `strategy.step`. A training that was killed goes on from its last whole epoch and, on a CPU,
ends with the very bytes of one that was not. The validation images are a part of the training data; no test split comes
near this loop.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.training.averaging import averaged_copy, update_average
from fer_pipeline.training.batch_norm import share_statistics
from fer_pipeline.training.batches import Loader, Stream
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.optimization import build_optimizer, rate_factor
from fer_pipeline.training.records import Record, Row
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.sources import Source
from fer_pipeline.training.state import TrainingState
from fer_pipeline.training.strategy import BuildContext, Phase, Strategy
from fer_pipeline.training.validation import better, validate
from fer_pipeline.training.worker import Worker, reproducible

STEPS_BETWEEN_CHECKS = 50  # of the losses for NaN; each check waits for the device


@dataclass(frozen=True)
class TrainingJob:
    """All that decides what a training makes.

    `network` has its size written out; `sources` are the streams that the strategy declares; `about` and `data` (hashes
    of what is read) are noted in the checkpoint's card.
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


@dataclass(frozen=True)
class Execution:
    """Where a training runs: its process, the folders of its state and its results, who hears of finished steps."""

    worker: Worker
    state: Path
    folder: Path
    advance: Callable[[int], None] = lambda steps: None


@dataclass(frozen=True)
class FitResult:
    """The chosen network on the CPU, and how it came about. The seconds are those of steps, over all pauses."""

    model: ExpressionNet
    epoch: int  # the chosen one of all, from 1
    history: list[Row]
    steps: int
    seconds: float
    waited: float  # of these, for images
    notes: tuple[str, ...]


def length(settings: TrainingSettings, num_labelled: int) -> tuple[int, int]:
    """Steps in all and steps an epoch, from the number of labelled images alone: equal for every recipe."""
    steps_per_epoch = math.ceil(num_labelled / settings.batch)
    total = settings.steps if settings.epochs is None else settings.epochs * steps_per_epoch
    assert total is not None
    return total, steps_per_epoch


def fit(
    job: TrainingJob,
    strategy: Strategy,
    streams: Mapping[str, Stream],
    validation: ImageSet | None,
    preprocessing: Preprocessing,
    execution: Execution,
) -> FitResult:
    """Trains `strategy`; writes the history into the folder and, after every epoch, what a resume needs as the state.

    Of several processes at once, each calls this with its own worker; the leader writes.
    """
    settings, worker, advance = job.settings, execution.worker, execution.advance
    _, steps_per_epoch = length(settings, len(streams["labelled"].set))
    streams = {name: stream.for_worker(worker) for name, stream in streams.items()}
    loader = Loader(streams, worker.device)
    with reproducible(settings):
        share_statistics(strategy, worker)
        strategy.to(device=worker.device)
        strategy.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        average = averaged_copy(strategy.predictor()) if settings.average else None
        state = TrainingState(execution.state, strategy, worker.fabric._precision, average)
        progress, saved_optimizers = state.restore(worker.device)
        record = Record(execution.folder, progress.rows) if worker.is_leader else None
        run = StepContext(
            worker,
            streams,
            preprocessing,
            seed=job.seed,
            clip=settings.clip,
            steps_per_epoch=steps_per_epoch,
            advance=advance,
        )
        phases = strategy.phases()
        advance(progress.step)

        for number, phase in enumerate(phases):
            if number < progress.phase:
                continue
            phase_steps = _phase_length(phase, settings, len(streams["labelled"].set))
            if phase_steps == 0:  # left out by the strategy's options
                progress.phase, progress.epoch = number + 1, 0
                continue
            _begin_phase(run, phase, settings, phase_steps, saved_optimizers)
            saved_optimizers = {}  # those of the next phase are fresh
            first_step = progress.step - progress.epoch * steps_per_epoch  # of the phase, among all
            with closing(loader.batches(range(progress.step, first_step + phase_steps))) as batches_of_steps:
                for epoch in range(progress.epoch, math.ceil(phase_steps / steps_per_epoch)):
                    strategy.train()
                    sums: dict[str, Tensor] = {}
                    first, last = epoch * steps_per_epoch, min((epoch + 1) * steps_per_epoch, phase_steps)
                    started, waited = time.perf_counter(), loader.waited
                    for step in range(first, last):
                        run.step, run.phase_step, run.epoch = first_step + step, step, epoch
                        _set_rates(run, phase, settings)
                        torch.manual_seed(run.child_seed())  # dropout's numbers: a function of the step like all else
                        batches = next(batches_of_steps)
                        with worker.fabric.autocast():
                            losses = strategy.step(batches, run)
                        for name, loss in losses.items():
                            value = loss.detach().double()
                            sums[name] = sums[name] + value if name in sums else value
                        if average is not None and settings.average:
                            decay = min(settings.average, (1 + run.step) / (10 + run.step))
                            update_average(average, strategy.predictor(), decay=decay)
                        if step % STEPS_BETWEEN_CHECKS == 0 or step == last - 1:
                            _refuse_nan(sums, epoch=len(progress.rows))
                        advance(1)
                    sums = {name: worker.mean(value) for name, value in sums.items()}
                    progress.seconds += time.perf_counter() - started
                    progress.waited += loader.waited - waited
                    progress.step, progress.epoch = first_step + last, epoch + 1

                    metrics: dict[str, float] = {}
                    model = average if average is not None else strategy.predictor()
                    if validation is not None and worker.is_leader:
                        metrics = validate(
                            model, validation, preprocessing=preprocessing, classes=job.classes, device=worker.device
                        )
                    metrics = worker.broadcast(metrics)
                    ended = bool(worker.broadcast(strategy.end_epoch(run, metrics)))
                    row: Row = {"epoch": len(progress.rows) + 1, "steps": progress.step, "learning_rate": run.rate()}
                    row |= {"phase": number + 1} if len(phases) > 1 else {}
                    row |= {f"train_{name}": float(value) / (last - first) for name, value in sums.items()}
                    row |= {f"validation_{name}": value for name, value in metrics.items()}
                    if metrics and settings.select == "best" and better(metrics, progress.best, settings.monitor):
                        progress.best, progress.best_epoch = metrics, len(progress.rows) + 1
                        progress.best_weights = copy.deepcopy(model.state_dict())
                    if record is None:
                        progress.rows.append(row)
                    else:
                        record.add(row)  # to the same list
                    ended = ended or last == phase_steps
                    if ended:
                        progress.phase, progress.epoch = number + 1, 0
                    if ended and number + 1 < len(phases):  # the epoch is chosen among those of the last phase alone
                        progress.best, progress.best_epoch, progress.best_weights = None, 0, None
                    if worker.is_leader:
                        state.save(progress, {} if ended else run.optimizers)
                    if ended:
                        break

        if record is not None:
            record.close()
        model = copy.deepcopy(average if average is not None else strategy.predictor())
        if progress.best_weights is not None:
            model.load_state_dict(progress.best_weights)
    return FitResult(
        model=model.to(device="cpu").eval(),
        epoch=progress.best_epoch or len(progress.rows),
        history=progress.rows,
        steps=progress.step,
        seconds=progress.seconds,
        waited=progress.waited,
        notes=(worker.note,) if worker.note else (),
    )


def _phase_length(phase: Phase, settings: TrainingSettings, num_labelled: int) -> int:
    if phase.steps is not None:
        return phase.steps
    total, steps_per_epoch = length(settings, num_labelled)
    return total if phase.epochs is None else phase.epochs * steps_per_epoch


def _begin_phase(
    run: StepContext, phase: Phase, settings: TrainingSettings, phase_steps: int, saved: Mapping[str, Any]
) -> None:
    parameters = [id(p) for one in phase.optimizers.values() for p in one.module.parameters() if p.requires_grad]
    assert len(parameters) == len(set(parameters)), f"two optimisers of the phase {phase.name} share a weight"
    run.phase, run.phase_steps = phase.name, phase_steps
    run.modules = {name: one.module for name, one in phase.optimizers.items()}
    run.optimizers = {
        name: run.worker.fabric.setup_optimizers(
            build_optimizer(one.module.parameters(), one.optimizer or settings.optimizer)
        )
        for name, one in phase.optimizers.items()
    }
    for name, optimizer_state in saved.items():
        run.optimizers[name].optimizer.load_state_dict(optimizer_state)


def _set_rates(run: StepContext, phase: Phase, settings: TrainingSettings) -> None:
    for name, one in phase.optimizers.items():
        factor = rate_factor(
            one.schedule or settings.schedule,
            run.phase_step,
            total_steps=run.phase_steps,
            steps_per_epoch=run.steps_per_epoch,
        )
        for group in run.optimizers[name].param_groups:
            group["lr"] = (one.optimizer or settings.optimizer).learning_rate * factor


def _refuse_nan(sums: Mapping[str, Tensor], *, epoch: int) -> None:
    broken = [name for name, value in sums.items() if not torch.isfinite(value)]
    if broken:
        raise PipelineError(
            f"the loss {broken[0]} became NaN or infinite in epoch {epoch + 1}; lower the learning rate, "
            "set training.clip or add warmup_epochs"
        )
