"""Decide how much memory training images may take: what the settings allow of what the machine has free.

Images that fit are decoded once, onto the GPU of the training or into memory; the rest stays in its shards. Nothing of
this changes a result.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from fer_pipeline.core.settings import Resources

GIB = 1 << 30


@dataclass
class MemoryBudget:
    """Bytes that one process may still take for images, and the threads that may decode them."""

    device: torch.device
    memory: int
    on_device: int = 0
    threads: int = 1

    def reserve(self, needed: int) -> Literal["device", "memory", "shards"]:
        """Reserves `needed` bytes of decoded images at the nearest place where they fit; in shards they need none."""
        if needed <= self.on_device:
            self.on_device -= needed
            return "device"
        if needed <= self.memory:
            self.memory -= needed
            return "memory"
        return "shards"

    def reserve_up_to(self, wanted: int) -> int:
        """Reserves at most `wanted` bytes of memory and gives their number."""
        reserved = min(wanted, self.memory)
        self.memory -= reserved
        return reserved


def memory_budget(resources: Resources, device: torch.device, *, processes: int = 1) -> MemoryBudget:
    """The share of one of `processes` trainings at a time on this machine, each with a GPU of its own if with any."""
    memory = resources.memory_gb * GIB if resources.memory_gb is not None else free_memory() / 2
    on_device = torch.cuda.mem_get_info(device)[0] * resources.gpu_memory_share if device.type == "cuda" else 0
    threads = max(1, resources.workers // processes)
    return MemoryBudget(device, int(memory / processes), int(on_device), threads)


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes to be had without pushing others out, of the machine and of the container where this is one."""
    free = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, KeyError, ValueError):
        return free
