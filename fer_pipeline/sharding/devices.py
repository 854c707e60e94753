"""Where the shards are made: the settings in, one device for each worker out, and one thread for a worker on a CPU."""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Resources

# Read by the libraries when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def worker_devices(resources: Resources) -> tuple[str, ...]:
    """The device of each local worker: `workers` times the CPU, or each of `gpus` GPUs once."""
    if resources.device == "cpu":
        return ("cpu",) * resources.workers
    import torch  # a machine without a GPU never needs it here

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resources.device == "auto" and there == 0:
        return ("cpu",) * resources.workers
    if resources.device.startswith("cuda:"):
        if int(resources.device.removeprefix("cuda:")) >= there:
            raise ConfigError(f"device {resources.device!r} is not there ({there} GPUs found); use auto or cpu")
        return (resources.device,)
    wanted = there if resources.gpus is None else resources.gpus
    if there == 0 or wanted > there:
        raise ConfigError(f"{max(wanted, 1)} GPUs are wanted, {there} found; lower resources.gpus or use device auto")
    return tuple(f"cuda:{number}" for number in range(wanted))


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Torch, where it is loaded, with one thread on a CPU: the same sums in the same order in every worker."""
    torch = sys.modules.get("torch")
    if torch is None or device != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, for what is started meanwhile; as before when it ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_thread_for_children() -> AbstractContextManager[None]:
    """Processes that are started meanwhile load their libraries with one thread."""
    return environment(dict.fromkeys(THREADS, "1"))
