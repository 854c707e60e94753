"""The training loop in plain sight: a strategy and its streams in, the chosen network and its history out.

Per epoch: steps, validation, one row of history, the state on disk. Per step: a learning rate, one batch of every
stream, `strategy.step`. A training that was killed goes on from its last whole epoch and, on a CPU, ends with the very
bytes of one that was not. The validation images are a part of the training data; no test split comes near this loop.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.averaging import Average
from fer_pipeline.training.batches import Stream
from fer_pipeline.training.fabric import Place, make_place, reproducible
from fer_pipeline.training.loader import Loader
from fer_pipeline.training.records import Record, Row
from fer_pipeline.training.schedules import build_optimizer, rate_factor
from fer_pipeline.training.sets import ImageSet
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.states import Parts
from fer_pipeline.training.strategy import StepLearner, Strategy
from fer_pipeline.training.validation import better, validate

STEPS_BETWEEN_CHECKS = 50  # of the losses for NaN; each check waits for the device


@dataclass(frozen=True)
class Fitted:
    """The chosen network on the CPU, and how it came about. The seconds are those of steps, over all pauses."""

    model: ExpressionNet
    epoch: int  # the chosen one, from 1
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
    strategy: Strategy,
    streams: Mapping[str, Stream],
    validation: ImageSet | None,
    *,
    settings: TrainingSettings,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    seed: int,
    device: str | Place,
    state: Path,
    folder: Path,
    advance: Callable[[int], None] = lambda steps: None,
) -> Fitted:
    """Trains `strategy`; writes the history into `folder` and, after every epoch, what a resume needs into `state`.

    Of several processes at once, each calls this with its own `Place`; the first writes.
    """
    place = make_place(device, settings.precision) if isinstance(device, str) else device
    total_steps, steps_per_epoch = length(settings, len(streams["labelled"].set))
    streams = {name: stream.at(place) for name, stream in streams.items()}
    loader = Loader(streams, place.device)
    with reproducible(settings):
        place.share_statistics(strategy)
        strategy.to(device=place.device)
        strategy.to(memory_format=torch.channels_last)
        optimizers, learner = _optimizers(place, strategy, settings, seed, total_steps, steps_per_epoch)
        average = Average(strategy.predictor(), settings.average) if settings.average else None
        parts = Parts(strategy, optimizers, place.fabric._precision, average)
        done = parts.resume(state, place.device)
        record = Record(folder, done.rows) if place.leads else None
        advance(min(done.epoch * steps_per_epoch, total_steps))

        with closing(loader.batches(range(done.epoch * steps_per_epoch, total_steps))) as coming:
            for epoch in range(done.epoch, math.ceil(total_steps / steps_per_epoch)):
                strategy.train()
                sums: dict[str, Tensor] = {}
                first, last = epoch * steps_per_epoch, min((epoch + 1) * steps_per_epoch, total_steps)
                started, waited = time.perf_counter(), loader.waited
                for step in range(first, last):
                    learner.step = step
                    factor = rate_factor(
                        settings.schedule, step, total_steps=total_steps, steps_per_epoch=steps_per_epoch
                    )
                    for optimizer in optimizers.values():
                        for group in optimizer.param_groups:
                            group["lr"] = settings.optimizer.learning_rate * factor
                    torch.manual_seed(learner.child_seed())  # dropout's numbers: a function of the step like all else
                    batches = next(coming)
                    with place.fabric.autocast():
                        losses = strategy.step(batches, learner)
                    for name, loss in losses.items():
                        value = loss.detach().double()
                        sums[name] = sums[name] + value if name in sums else value
                    if average:
                        average.update(strategy.predictor(), step)
                    if step % STEPS_BETWEEN_CHECKS == 0 or step == last - 1:
                        _refuse_nan(sums, epoch=epoch)
                    advance(1)
                sums = {name: place.mean(value) for name, value in sums.items()}
                done.seconds += time.perf_counter() - started
                done.waited += loader.waited - waited
                done.epoch = epoch + 1
                if record is None:  # the first process validates and writes for all
                    continue

                model = average.model if average else strategy.predictor()
                row: Row = {"epoch": epoch + 1, "steps": last, "learning_rate": learner.rate()}
                row |= {f"train_{name}": float(value) / (last - first) for name, value in sums.items()}
                if validation is not None:
                    found = validate(
                        model, validation, preprocessing=preprocessing, classes=classes, device=place.device
                    )
                    row |= {f"validation_{name}": value for name, value in found.items()}
                    if settings.select == "best" and better(found, done.best, settings.monitor):
                        done.best, done.best_epoch = found, epoch + 1
                        done.best_weights = copy.deepcopy(model.state_dict())
                record.add(row)
                parts.save(state, done)

        if record is not None:
            record.close()
        model = copy.deepcopy(average.model if average else strategy.predictor())
        if done.best_weights is not None:
            model.load_state_dict(done.best_weights)
    return Fitted(
        model=model.to(device="cpu").eval(),
        epoch=done.best_epoch or done.epoch,
        history=done.rows,
        steps=total_steps,
        seconds=done.seconds,
        waited=done.waited,
        notes=(place.note,) if place.note else (),
    )


def _optimizers(
    place: Place, strategy: Strategy, settings: TrainingSettings, seed: int, total_steps: int, steps_per_epoch: int
) -> tuple[dict[str, Any], StepLearner]:
    fabric, networks = place.fabric, dict(strategy.trained())
    optimizers = {
        name: fabric.setup_optimizers(build_optimizer(network.parameters(), settings))
        for name, network in networks.items()
    }

    def apply(loss: Tensor, name: str) -> None:
        optimizer = optimizers[name]
        optimizer.zero_grad()
        with torch.autocast(fabric.device.type, enabled=False):  # gradients have the precision of their forward pass
            fabric.backward(loss)
        place.share_gradients(networks[name])
        if settings.clip:
            fabric.clip_gradients(networks[name], optimizer, max_norm=settings.clip, error_if_nonfinite=False)
        optimizer.step()

    first = next(iter(networks))
    learner = StepLearner(
        seed=seed,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        apply=apply,
        rates=lambda name: optimizers[name or first].param_groups[0]["lr"],
        part=place.part,
    )
    return optimizers, learner


def _refuse_nan(sums: Mapping[str, Tensor], *, epoch: int) -> None:
    broken = [name for name, value in sums.items() if not torch.isfinite(value)]
    if broken:
        raise PipelineError(
            f"the loss {broken[0]} became NaN or infinite in epoch {epoch + 1}; lower the learning rate, "
            "set training.clip or add warmup_epochs"
        )
