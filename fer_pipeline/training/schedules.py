"""Optimisers and learning rates: settings in, a torch optimiser, and the rate of any step without a state, out."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from fer_pipeline.training.settings import Constant, Cosine, Sgd, Step, TrainingSettings


def build_optimizer(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser of the settings, all tensors in one go. Every weight decays alike, as in the papers."""
    chosen = settings.optimizer
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if isinstance(chosen, Sgd):
        return torch.optim.SGD(
            trained,
            lr=chosen.learning_rate,
            momentum=chosen.momentum,
            nesterov=chosen.nesterov,
            weight_decay=chosen.weight_decay,
            foreach=True,
        )
    kind = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
    return kind(trained, lr=chosen.learning_rate, betas=chosen.betas, weight_decay=chosen.weight_decay, foreach=True)


def rate_factor(schedule: Cosine | Step | Constant, step: int, *, total_steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step: a linear warm-up, then the schedule over what is left."""
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if isinstance(schedule, Cosine):
        done = (step - warmup) / max(total_steps - warmup, 1)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * done))
    if isinstance(schedule, Step):
        return schedule.factor ** int(step / (schedule.every * steps_per_epoch))
    return 1.0
