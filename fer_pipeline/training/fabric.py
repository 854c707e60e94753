"""Lightning Fabric for one device: where and how precisely a training runs, without a word on the screen.

Mixed precision is used where the device has it; where it was asked for and is missing, a note says so.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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


def make_fabric(device_name: str, wanted: str) -> tuple[Any, str | None]:
    """A quiet Fabric on one device, and the note on its precision."""
    # Lightning takes seconds to import, and settings are checked without it.
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.fabric import Fabric

        device = resolve_device(device_name)
        precision, note = choose_precision(wanted, device)
        devices: Any = [device.index or 0] if device.type == "cuda" else 1
        return Fabric(accelerator=device.type, devices=devices, precision=precision), note  # pyright: ignore


@contextmanager
def reproducible(settings: TrainingSettings) -> Iterator[None]:
    """One training's own threads, random numbers and deterministic algorithms; all as before when it ends."""
    with torch.random.fork_rng(), deterministic(settings.threads):
        yield
