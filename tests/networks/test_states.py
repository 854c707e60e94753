"""What is kept to go on with goes on exactly, and is refused in a line where it belongs to something else."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fer_pipeline.core.errors import DataError
from fer_pipeline.distillation.loop import DistillationProgress, load_state, save_state
from fer_pipeline.distillation.start import Synthetic
from fer_pipeline.networks.states import read_state, refuse_state, restore_optimizer
from fer_pipeline.training.records import STATE, Progress, restore

Build = Callable[..., tuple[torch.Tensor, torch.optim.Optimizer]]


def adam(**options: Any) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    weight = torch.zeros(2, 3)
    return weight, torch.optim.Adam([weight], lr=0.1, **options)


def sgd(**options: Any) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    weight = torch.zeros(2, 3)
    return weight, torch.optim.SGD([weight], lr=0.1, **{"momentum": 0.9, **options})


def step(weight: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    weight.grad = torch.arange(6.0).reshape(2, 3) + 1
    optimizer.step()


@pytest.mark.parametrize("build", [adam, sgd])
def test_a_restored_optimiser_takes_the_same_steps(build: Build, tmp_path: Path) -> None:
    weight, optimizer = build()
    step(weight, optimizer)
    optimizer.param_groups[0]["lr"] = 0.03
    torch.save({"weight": weight, "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = read_state(tmp_path / "state.pt")
    other_weight, other = build()
    other_weight.copy_(state["weight"])
    restore_optimizer(other, state["optimizer"])
    for _ in range(3):
        step(weight, optimizer), step(other_weight, other)
    assert other.param_groups[0]["lr"] == 0.03
    assert torch.equal(weight, other_weight)


def spoil(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["state"][0].update(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state["param_groups"][0].update(betas=(0.5, 0.9)), "the options of an optimiser are others"),
        (lambda state: state["param_groups"][0].pop("eps"), "the options of an optimiser are others"),
        (spoil(exp_avg=torch.zeros(3)), "an optimiser's exp_avg does not fit its weight"),
        (spoil(exp_avg=torch.zeros(1).expand(2, 3)), "an optimiser's exp_avg does not fit its weight"),
        (spoil(exp_avg_sq=torch.full((2, 3), torch.nan)), "an optimiser's exp_avg_sq does not fit its weight"),
        (spoil(step=torch.tensor(-1e9)), "an optimiser's step does not fit its weight"),
        (spoil(step=torch.zeros(2)), "an optimiser's step does not fit its weight"),
        (lambda state: state["state"][0].pop("exp_avg"), "an optimiser's values of a weight are step, exp_avg_sq"),
        (spoil(other=torch.zeros(2, 3)), "an optimiser's values of a weight are step, exp_avg, exp_avg_sq, other"),
        (lambda state: state.pop("state"), "state"),
    ],
)
def test_a_state_of_something_else_is_one_line(change: Callable[[dict[str, Any]], None], told: str) -> None:
    weight, optimizer = adam()
    step(weight, optimizer)
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(DataError, match=rf"^state\.pt is damaged \(.*{told}.*\); remove it$"):
        with refuse_state(Path("state.pt"), "remove it"):
            restore_optimizer(adam()[1], state)


@pytest.mark.parametrize(("number", "kind"), [(errno.EINVAL, DataError), (errno.ENOSPC, OSError), (None, DataError)])
def test_a_place_outside_of_the_file_is_damage_and_a_full_disk_is_not(
    number: int | None, kind: type[Exception]
) -> None:
    """The system calls a place before a file's start, which a damaged archive names, an invalid argument."""
    with pytest.raises(kind, match="said so"), refuse_state(Path("state.pt"), "remove it"):
        raise OSError(*([number] if number else []), "said so")


def synthetic(*shape: int, value: float = 0.0) -> tuple[Synthetic, torch.optim.Optimizer]:
    images, sizes = torch.full(shape, value), torch.zeros(shape[0])
    return Synthetic(images, sizes, torch.zeros(shape[:2])), torch.optim.SGD([images, sizes], lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("stored", "history", "told"),
    [
        (synthetic(1, 3, 3, 8, 8), [], "images have another shape"),  # which would fit by broadcasting
        (synthetic(2, 3, 3, 8, 8, value=float("nan")), [], "are not finite"),
        (synthetic(2, 3, 3, 8, 8), {"loss": 1.0}, "valid list"),
    ],
)
def test_a_distillation_goes_on_with_its_own_state_alone(
    tmp_path: Path, stored: tuple[Synthetic, torch.optim.Optimizer], history: Any, told: str
) -> None:
    save_state(tmp_path, *stored, DistillationProgress())
    saved = read_state(tmp_path / "state.pt")
    torch.save({**saved, "progress": {**saved["progress"], "history": history}}, tmp_path / "state.pt")
    with pytest.raises(DataError, match=rf"{told}.*; remove it to distil from the start"):
        load_state(tmp_path, *synthetic(2, 3, 3, 8, 8))


def test_a_training_goes_on_with_its_own_state_alone(tmp_path: Path) -> None:
    model, device = torch.nn.Linear(3, 2), torch.device("cpu")
    rows: list[dict[str, float | int]] = [{"epoch": 1, "steps": 20, "train_loss": 1.5}]
    kept = Progress(phase_epochs=1, steps=20, history=rows, best_weights=model.state_dict())
    kept.save(tmp_path, {"strategy": model}, {})
    found, _ = restore(tmp_path, {"strategy": torch.nn.Linear(3, 2)}, model, device)
    assert found.history == rows
    assert [type(value) for value in found.history[0].values()] == [int, int, float]
    assert torch.equal((found.best_weights or {})["weight"], model.weight)
    saved = read_state(tmp_path / STATE)
    for change, told in (
        ({"best_weights": {"weight": torch.zeros(3)}}, "the best weights are those of another network"),
        ({"steps": -1}, "greater than or equal to 0"),
        ({"odd": 1}, "odd"),
    ):
        torch.save({**saved, "progress": {**saved["progress"], **change}}, tmp_path / STATE)
        with pytest.raises(DataError, match=rf"{told}.*; remove it and run the stage again"):
            restore(tmp_path, {"strategy": model}, model, device)
