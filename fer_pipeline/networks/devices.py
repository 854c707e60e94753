"""Find the device that the settings name, and make torch compute the same bytes on it each time."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fer_pipeline.core.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Returns the device; `auto` takes a GPU where there is one, and a device that is not there is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    return device


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Gives a block random numbers of its own, some threads and deterministic algorithms; all as before at its end."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore
    # Read by cuBLAS when it starts; without it torch refuses to multiply matrices deterministically.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling new tensors with NaN finds reads of unwritten memory; it changes no result and costs 7 % of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore
