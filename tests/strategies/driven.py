"""Drive single steps of a strategy outside of the loop, with plain SGD, on random crops."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.training.augmentation import Augmentation
from fer_pipeline.training.batches import Batch
from fer_pipeline.training.context import StepContext
from fer_pipeline.training.settings import AugmentSettings, TrainingSettings
from fer_pipeline.training.strategy import BuildContext
from fer_pipeline.training.worker import make_worker

SIZE = 24
NO_AUGMENTATION = AugmentSettings(flip=0, translate=0)


class Precise(BuildContext):
    """Gives views in float64."""

    def random_view(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return super().random_view(batch, generator).double()

    def strong_view(self, batch: Batch, generator: torch.Generator, settings: Any) -> Tensor:
        return super().strong_view(batch, generator, settings).double()


def strategy_of(module: ModuleType, options: Any, *, norm: str = "batch", precise: bool = False) -> Any:
    """A strategy with three classes and a tiny network, another one for each name."""
    augmentation = Augmentation(NO_AUGMENTATION, Preprocessing(size=SIZE))

    def network(name: str) -> tuple[Any, Preprocessing]:
        seed = 1 if name == "main" else 2
        return build(NetworkSettings(size=SIZE, width=4, norm=norm), 3, seed=seed), augmentation.preprocessing

    context = (Precise if precise else BuildContext)(
        num_classes=3,
        make_network=network,
        augmentation=augmentation,
        settings=TrainingSettings(augment=NO_AUGMENTATION),
        class_counts={"labelled": torch.tensor([5, 3, 2])},
    )
    chosen = module.build(options, context).train()
    return chosen.double() if precise else chosen


def driven(chosen: Any, *, rate: float = 0.05, phase: int = 0, step: int = 0, steps: int = 10) -> StepContext:
    """A context for one step of a phase, with SGD at one rate for each optimiser."""
    run = StepContext(
        make_worker("cpu", "auto"), {}, Preprocessing(size=SIZE), seed=0, clip=None, steps_per_epoch=1, step=step
    )
    run.phase_step, run.phase_steps = step, steps
    plan = chosen.phases()[phase]
    run.phase, run.modules = plan.name, {name: one.module for name, one in plan.optimizers.items()}
    for name, module in run.modules.items():
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=rate)
        run.optimizers[name] = SimpleNamespace(
            optimizer=optimizer, zero_grad=optimizer.zero_grad, param_groups=optimizer.param_groups
        )
    return run


def crops(count: int, seed: int, truth: Tensor | None = None) -> Batch:
    """Random crops with random labels."""
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(0, 3, count))
    return Batch(images, labels, torch.arange(count), prepared=False, truth=truth)
