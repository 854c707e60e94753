"""Build the optimisers of a phase and set their learning rates by its schedule."""

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.settings import Constant, Cosine, Optimizer, Schedule, Step, TrainingSettings
from fer_pipeline.training.strategy import Phase, Strategy

FACTOR = "rate_factor"  # of a group of parameters, in its optimiser


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimizer, *, old: Collection[int] = (), old_rate: float | None = None
) -> torch.optim.Optimizer:
    """A torch optimiser over the parameters that want gradients. Every weight decays alike, as in the papers.

    With `old_rate`, the parameters whose ids are among `old` are a group whose learning rate is multiplied by it.
    """
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    options = settings.model_dump(exclude={"name", "learning_rate"})
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[Any] = trained
    if old_rate is not None:
        new, loaded = ([p for p in trained if (id(p) in old) == among] for among in (False, True))
        groups = [{"params": one, FACTOR: factor} for one, factor in ((new, 1.0), (loaded, old_rate)) if one]
    return kind(groups, lr=settings.learning_rate, foreach=True, **options)


def loaded_parameters(strategy: Strategy) -> set[int]:
    """Returns the ids of the parameters that came from weights."""
    networks = [module for module in strategy.modules() if isinstance(module, ExpressionNet)]
    return {id(parameter) for one in networks for name, parameter in one.named_parameters() if name in one.loaded}


def rate_factor(schedule: Schedule, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step: a linear warm-up, then the schedule over what is left."""
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, Cosine):
        done = (step - warmup) / max(total_steps - warmup, 1)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
    if isinstance(schedule, Step):
        falls = int(step / (schedule.every * steps_per_epoch))
        return schedule.factor ** min(falls, schedule.falls or falls)
    return 1.0


def set_rates(
    run: StepContext, phase: Phase, settings: TrainingSettings, falling: tuple[int | None, int] | None
) -> None:
    """Sets the learning rates of a step; `falling` are the epochs between which a cosine without a length falls."""
    for name, plan in phase.optimizers.items():
        schedule, step, total = plan.schedule or settings.schedule, run.phase_step, run.phase_steps
        if falling and isinstance(schedule, Cosine):
            start, end = falling
            if start is None:
                schedule = Constant(name="constant", warmup_epochs=schedule.warmup_epochs)
            else:
                step, total = step - start * run.steps_per_epoch, (end - start) * run.steps_per_epoch
                schedule = Cosine(floor=schedule.floor)
        elif falling:
            total = falling[1] * run.steps_per_epoch
        factor = rate_factor(schedule, step, total_steps=total, steps_per_epoch=run.steps_per_epoch)
        for group in run.optimizers[name].param_groups:
            group["lr"] = (plan.optimizer or settings.optimizer).learning_rate * factor * group.get(FACTOR, 1.0)
