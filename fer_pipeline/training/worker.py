"""Start training processes, quiet Lightning Fabric workers, alone or as several that train together.

Mixed precision is used where the device has it; where it was asked for and is missing, a note says so.

`run_group` starts one process a device, which Fabric joins into a group that divides the batch of every step; on CPUs
it speaks by gloo, which the tests use. A process whose parent is gone ends at its next step.
"""

import importlib
import logging
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.shares import Advance, end_with_parent


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

    def peak_memory(self) -> int:
        """The bytes that torch held on the GPU at most, or this process in all, since it began.

        A process that trains several seeds one after the other keeps the highest of them.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

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
        return value if self.world_size == 1 else self.fabric.broadcast(value)

    def average_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replaces gradients by their mean over the processes, in one message: a network is small beside its images."""
        if self.world_size == 1 or not gradients:
            return
        mean = self.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, mean.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def make_worker(device_name: str, wanted: str, *, devices: Sequence[str] = ()) -> Worker:
    """A worker on one device in the precision of the settings, or the one that starts others, each on its device."""
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


Result = TypeVar("Result")

GROUP_LOST = (
    "a training process was lost (killed, or out of memory) and the others were ended; run again, it goes on from its "
    "last whole epoch"
)
GROUP_BROKEN = ("connection", "gloo", "nccl", "peer", "socket")  # words in the faults of the processes that are left


def group_devices(resources: Resources, *, usual: Literal["seeds", "data"]) -> tuple[str, ...]:
    """The devices that train one network together, none where it trains alone; `usual` is what several GPUs do."""
    devices = worker_devices(resources)
    chosen = resources.parallel or (usual if devices[0] != "cpu" else "seeds")
    return devices if chosen == "data" and len(devices) > 1 else ()


def run_group(
    work: Callable[[Worker, Advance], Result], devices: Sequence[str], *, precision: str, advance: Advance
) -> Result:
    """Calls `work` in a process for every device and gives back the leader's result; both must be picklable.

    The result is no frozen dataclass, in which Fabric would look for tensors. Where one process ends too early all end,
    with one line.
    """
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    assert len(devices) > 1, "one device needs no group"
    worker = make_worker(devices[0], precision, devices=devices)
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    errors: list[str] = []

    def listen() -> None:
        """What `advance` is called with is a tuple, errors are lines, and None is the end."""
        while (message := messages.get()) is not None:
            if isinstance(message, str):
                errors.append(message)
            else:
                steps, earlier, planned = message
                advance(steps, earlier=earlier, planned=planned)

    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        return worker.fabric.launch(_run_rank, work, worker.note, messages)
    except ProcessExitedException:
        messages.put(None)
        listener.join()
        raise PipelineError(errors[0] if errors else GROUP_LOST) from None
    except ProcessRaisedException as error:
        if any(word in str(error).lower() for word in GROUP_BROKEN):
            raise PipelineError(GROUP_LOST) from None
        raise
    finally:
        messages.put(None)
        listener.join()


def _run_rank(fabric: Any, work: Callable[[Worker, Advance], Result], note: str | None, messages: Any) -> Result:
    worker = Worker(fabric, note)

    def advance(steps: int, *, earlier: bool = False, planned: int = 0) -> None:
        end_with_parent()
        if worker.is_leader:
            messages.put((steps, earlier, planned))

    try:
        return work(worker, advance)
    except PipelineError as error:
        messages.put(str(error))
        raise SystemExit(1) from None


if multiprocessing.current_process().name != "MainProcess":  # else Fabric would raise its voice in a fresh process
    silence_fabric()
