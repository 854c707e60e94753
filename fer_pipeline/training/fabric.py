"""Lightning Fabric: where and how precisely a training runs, on one device or several, without a word on the screen.

Mixed precision is used where the device has it; where it was asked for and is missing, a note says so.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.networks.devices import deterministic, resolve_device
from fer_pipeline.training.settings import TrainingSettings


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str | None]:
    """The precision for a device, and a note where it is not the wanted one."""
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return ("bf16-mixed" if has_bf16 else "16-mixed" if on_gpu else "32-true"), None
    if wanted == "32-true" or (wanted == "16-mixed" and on_gpu) or (wanted == "bf16-mixed" and has_bf16):
        return wanted, None
    return "32-true", f"precision {wanted} is not available on {device}; trained in 32-true"


@dataclass(frozen=True)
class Place:
    """Where a training runs: on one device, or as one of several processes that train on one batch together."""

    fabric: Any
    note: str | None = None  # on its precision

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    @property
    def part(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return self.fabric.global_rank, self.fabric.world_size

    @property
    def leads(self) -> bool:
        """Whether this process validates and writes."""
        return self.fabric.is_global_zero

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        return values if self.part[1] == 1 else self.fabric.all_reduce(values, reduce_op="mean")

    def share_gradients(self, network: nn.Module) -> None:
        """Every process gets the mean of all gradients. One message for all: a network is small beside its images."""
        if self.part[1] == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        mean = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))

    def share_statistics(self, strategy: Any) -> None:
        """Batch norms, where there are any, take their statistics over the batches of all processes."""
        if self.part[1] == 1 or not any(isinstance(module, _BatchNorm) for module in strategy.modules()):
            return
        if self.device.type != "cuda":
            raise ConfigError(
                "batch norms share their statistics on GPUs only; set network.norm: group or resources.parallel: seeds"
            )
        from timm.layers.norm_act import convert_sync_batchnorm  # knows timm's own layers, torch's does not

        convert_sync_batchnorm(strategy)


def make_place(device_name: str, wanted: str, *, devices: Sequence[str] = ()) -> Place:
    """A quiet Fabric on one device, or for `launch` (ranks.py) on several."""
    # Fabric takes seconds to import, and settings are checked without it.
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy

        device = resolve_device(devices[0] if devices else device_name)
        precision, note = choose_precision(wanted, device)
        numbers = [resolve_device(name).index or 0 for name in devices or [str(device)]]
        together = {"strategy": DDPStrategy(start_method="spawn")} if len(devices) > 1 else {}
        chosen: Any = numbers if device.type == "cuda" else len(numbers)
        fabric = Fabric(accelerator=device.type, devices=chosen, precision=precision, **together)  # pyright: ignore
        return Place(fabric, note)


def quiet() -> None:
    """Not a word of Fabric."""
    for name in ("lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def reproducible(settings: TrainingSettings) -> Iterator[None]:
    """One training's own threads, random numbers and deterministic algorithms; all as before when it ends."""
    with torch.random.fork_rng(), deterministic(settings.threads):
        yield
