"""Choose the device of each worker, and hold a worker on a CPU to one thread."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Resources

# Read by the libraries when they are loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
ONE_THREAD: dict[str, str] = {name: "1" for name in THREADS}


def worker_devices(resources: Resources) -> tuple[str, ...]:
    """Returns the device of each local worker: `workers` times the CPU, or each of `gpus` GPUs once."""
    if resources.device == "cpu":
        return ("cpu",) * resources.workers
    import torch  # a machine without a GPU never needs it here

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if resources.device == "auto" and count == 0:
        return ("cpu",) * resources.workers
    if resources.device.startswith("cuda:"):
        if int(resources.device.removeprefix("cuda:")) >= count:
            raise ConfigError(f"device {resources.device!r} is not there ({count} GPUs found); use auto or cpu")
        return (resources.device,)
    wanted = count if resources.gpus is None else resources.gpus
    if count == 0 or wanted > count:
        raise ConfigError(f"{max(wanted, 1)} GPUs are wanted, {count} found; lower resources.gpus or use device auto")
    return tuple(f"cuda:{number}" for number in range(wanted))


@contextmanager
def one_thread(device: str) -> Iterator[None]:
    """Limits torch, where it is loaded, to one thread on a CPU: the same sums in the same order in every worker."""
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
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for what is started in the block, and restores them at its end."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
