"""Build optimisers from settings and compute the learning rate of any step, without a state."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from fer_pipeline.training.settings import Constant, Cosine, Optimizer, Schedule, Sgd, Step


def build_optimizer(parameters: Iterable[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    """A torch optimiser over the parameters that want gradients. Every weight decays alike, as in the papers."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if isinstance(settings, Sgd):
        return torch.optim.SGD(
            trained,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(
        trained, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, foreach=True
    )


def rate_factor(schedule: Schedule, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step: a linear warm-up, then the schedule over what is left."""
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, Cosine):
        done = (step - warmup) / max(total_steps - warmup, 1)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
    if isinstance(schedule, Step):
        return schedule.factor ** int(step / (schedule.every * steps_per_epoch))
    assert isinstance(schedule, Constant)
    return 1.0
