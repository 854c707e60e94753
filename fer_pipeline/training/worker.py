"""Start a quiet Lightning Fabric worker on one device, alone or as one of several that train together.

Mixed precision is used where the device has it; where it was asked for and is missing, a note says so.
"""

import importlib
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fer_pipeline.networks.devices import resolve_device


def choose_precision(wanted: str, device: torch.device) -> tuple[str, str | None]:
    on_gpu = device.type == "cuda"
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return ("bf16-mixed" if has_bf16 else "16-mixed" if on_gpu else "32-true"), None
    if wanted == "32-true" or (wanted == "16-mixed" and on_gpu) or (wanted == "bf16-mixed" and has_bf16):
        return wanted, None
    return "32-true", f"precision {wanted} is not available on {device}; trained in 32-true"


class Worker:
    """One process of a training: its device, its rank, and what it exchanges with the others.

    The leader validates and writes; `note` is on the precision.
    """

    def __init__(self, fabric: Any, note: str | None = None) -> None:
        self.fabric, self.note = fabric, note
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank  # from 0
        self.world_size: int = fabric.world_size
        self.is_leader = self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        return values if self.world_size == 1 else self.fabric.all_reduce(values, reduce_op="mean")

    def gather(self, values: Tensor) -> Tensor:
        """The rows [n, …] of all processes, one after the other, in each; each process may bring another n."""
        if self.world_size == 1:
            return values
        counts = self.fabric.all_gather(torch.tensor([len(values)], device=self.device)).flatten().tolist()
        padded = torch.zeros((max(counts), *values.shape[1:]), dtype=values.dtype, device=self.device)
        padded[: len(values)] = values.to(self.device)
        parts = self.fabric.all_gather(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(values.device)

    def broadcast(self, value: Any) -> Any:
        """The leader's value in every process."""
        return value if self.world_size == 1 else self.fabric.broadcast(value)

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their mean over the processes, in one message: a network is small beside its images."""
        if self.world_size == 1 or not gradients:
            return
        mean = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def make_worker(device_name: str, wanted: str, *, devices: Sequence[str] = ()) -> Worker:
    """A worker on one device, or, with `devices`, the one from which `run_group` starts the others.

    Args:
        device_name: cpu, cuda, cuda:<number> or auto.
        wanted: the precision of the settings.
        devices: one device for each process of a group.
    """
    silence_fabric()
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    device = resolve_device(devices[0] if devices else device_name)
    precision, note = choose_precision(wanted, device)
    numbers = [resolve_device(name).index or 0 for name in devices or [str(device)]]
    group = {"strategy": DDPStrategy(start_method="spawn")} if len(devices) > 1 else {}
    chosen: Any = numbers if device.type == "cuda" else len(numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(accelerator=device.type, devices=chosen, precision=precision, **group)  # pyright: ignore
    return Worker(fabric, note)


def silence_fabric() -> None:
    """Imports Fabric, which takes seconds (settings are checked without it), and keeps it from writing below errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("lightning_fabric.strategies.ddp")
    for name in ("lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
