"""Read the state of an interrupted training, which is our own file but may be damaged or of other options."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.networks.weights import is_dense


@contextmanager
def refuse_state(path: Path, remedy: str) -> Iterator[None]:
    """Makes a DataError of whatever goes wrong while a state of ours is loaded and put to use."""
    try:
        yield
    except Exception as error:  # a damaged archive raises whatever its bytes happen to look like
        known = getattr(error, "errno", None) not in (None, errno.EINVAL)  # which a place before the file's start gives
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or known:
            raise  # that says nothing of the file
        raise DataError(f"{path} is damaged ({one_line(error, 120)}); {remedy}") from None


def read_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads what `torch.save` wrote of tensors, numbers, texts, lists and mappings; use it under `refuse_state`."""
    return dict(torch.load(path, map_location=device, weights_only=True))


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Puts a state into an optimiser of the same weights and options; use it under `refuse_state`.

    The learning rate is the state's. What would fail only in the first step, or change it, is a ValueError.
    """
    before = [{**group, "params": len(group["params"]), "lr": 0} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    after = [{**group, "params": len(group["params"]), "lr": 0} for group in optimizer.param_groups]
    if after != before:
        raise ValueError("the options of an optimiser are others")
    names = {one: _value_names(optimizer, group) for group in optimizer.param_groups for one in group["params"]}
    for parameter, values in optimizer.state.items():
        if parameter in names and values and values.keys() != names[parameter]:
            raise ValueError(f"an optimiser's values of a weight are {one_line(', '.join(map(str, values)), 60)}")
        for name, value in values.items():
            is_plain = value is None or isinstance(value, Tensor)
            if parameter not in names or not is_plain or not _fits(value, parameter):
                raise ValueError(f"an optimiser's {one_line(name, 40)} does not fit its weight")


def _value_names(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> set[str]:
    """Returns what the optimiser keeps for each weight of a group: what it kept after a step of its own with one."""
    weight = torch.zeros(1, device=group["params"][0].device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    build = cast(Callable[..., torch.optim.Optimizer], type(optimizer))  # the subclasses have defaults
    probe = build([{**group, "params": [weight]}])
    probe.step()
    return set(probe.state[weight])


def _fits(value: Tensor | None, parameter: Tensor) -> bool:
    """Tells whether a value kept for each number of a weight, or the count of steps, is whole and finite."""
    if value is None:
        return True
    is_whole = value.layout is torch.strided and value.is_floating_point() and is_dense(value)
    if value.ndim == 0 and parameter.ndim:
        return is_whole and 0 <= float(value) < float("inf")
    return is_whole and value.shape == parameter.shape and bool(value.isfinite().all())
