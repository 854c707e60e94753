"""The device of the settings as torch knows it."""

import torch

from fer_pipeline.core.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one; a device that is not there is refused."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} is not there ({torch.cuda.device_count()} GPUs found); use auto or cpu")
    return device
