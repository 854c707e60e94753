"""Two processes that train together against one alone: equal up to rounding, and one line for what breaks."""

import importlib
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from fer_pipeline.artifacts.history import read_history
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.training import losses, worker
from fer_pipeline.training.shares import ignore_steps
from fer_pipeline.training.worker import GROUP_LOST, group_devices, make_worker, run_group

WORKS = """
import os, runpy, signal
import numpy as np

def work(conftest, root, name, norm, worker, advance):
    world = runpy.run_path(conftest)
    done = 0

    def watched(steps, **more):
        nonlocal done
        done += steps
        advance(steps, **more)
        if done >= 7 and not worker.is_leader and (root / "kill").exists():
            (root / "kill").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    sets = {"labelled": world["bands"](61, 0), "mined": world["bands"](90, 2)}
    trained, folder = world["train_in"](
        root, name, sets=sets, network={"norm": norm}, device=worker, advance=watched,
        augment={"flip": 0, "translate": 0}, balance="weights", batch=17, average=0.9, clip=1.0,
    )
    return trained.fitted.steps, (worker.rank, worker.world_size)

def work_twice(conftest, root, names, norm, worker, advance):
    return [work(conftest, root, name, norm, worker, advance) for name in names]
"""
CPUS = ("cpu", "cpu")
CONFTEST = str(Path(__file__).parents[1] / "toy_world.py")


@pytest.fixture
def works(tmp_path: Path, monkeypatch) -> ModuleType:
    (tmp_path / "works_of_ranks.py").write_text(WORKS)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("works_of_ranks")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_train_the_network_of_one_and_go_on_after_a_killed_one(works, tmp_path: Path) -> None:
    work = partial(works.work, CONFTEST, tmp_path)
    told: list[int] = []

    def advance(steps: int, *, earlier: bool = False, planned: int = 0) -> None:
        told.extend([steps] if steps else [])

    run = partial(run_group, devices=CPUS, precision="auto", advance=advance)
    (tmp_path / "kill").touch()
    with pytest.raises(PipelineError) as caught:
        run(partial(work, "killed", "group"))
    assert str(caught.value) == GROUP_LOST
    told.clear()
    # One group for both, since it starts slowly: a whole training, then the rest of the killed one.
    both = partial(works.work_twice, CONFTEST, tmp_path, ("two", "killed"), "group")
    assert run(both) == [(12, (0, 2))] * 2
    whole = list(accumulate(told)).index(12) + 1
    assert told[whole] > 1, "nothing was taken up"
    assert sum(told[whole:]) == 12
    assert contents(tmp_path / "killed") == contents(tmp_path / "two")

    assert work("one", "group", make_worker("cpu", "auto"), ignore_steps) == (12, (0, 1))
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    rows = [read_history(tmp_path / name) for name in ("one", "two")]
    assert len(rows[0]) == 3
    for alone, both in zip(*rows, strict=True):
        assert both == pytest.approx(alone, rel=1e-4)


def test_what_one_refuses_is_the_line_of_all(works, tmp_path: Path) -> None:
    work = partial(works.work, CONFTEST, tmp_path, "refused", "batch")
    with pytest.raises(PipelineError, match=r"^batch norms share their statistics on GPUs only; set network.norm"):
        run_group(work, CPUS, precision="auto", advance=ignore_steps)


@pytest.mark.parametrize(
    ("devices", "parallel", "usual", "expected"),
    [
        (("cuda:0", "cuda:1"), None, "data", ("cuda:0", "cuda:1")),
        (("cuda:0", "cuda:1"), None, "seeds", ()),
        (("cuda:0", "cuda:1"), "data", "seeds", ("cuda:0", "cuda:1")),
        (("cuda:0", "cuda:1"), "seeds", "data", ()),
        (("cuda:0",), "data", "data", ()),
        (("cpu", "cpu"), None, "data", ()),
        (("cpu", "cpu"), "data", "data", ("cpu", "cpu")),
    ],
)
def test_what_several_devices_do(monkeypatch, devices, parallel, usual, expected) -> None:
    monkeypatch.setattr(worker, "worker_devices", lambda resources: devices)
    assert group_devices(Resources(parallel=parallel), usual=usual) == expected


def test_a_mean_over_parts_is_the_mean_of_the_whole_and_so_is_its_gradient(monkeypatch) -> None:
    """The group is played by hand: what all processes would sum is given to each."""
    values = torch.tensor([1.0, 4.0, 2.0, 8.0, 3.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.5], dtype=torch.float64)
    whole = values.clone().requires_grad_()
    losses.weighted_mean(whole.float(), weights.float()).backward()
    monkeypatch.setattr(losses.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(losses.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.distributed, "all_reduce", lambda total: total.fill_(float(weights.sum())))
    parts = [values[:2].clone().requires_grad_(), values[2:].clone().requires_grad_()]
    found = [losses.weighted_mean(parts[0].float(), weights[:2].float())]
    found.append(losses.weighted_mean(parts[1].float(), weights[2:].float()))
    mean = (found[0] + found[1]) / 2
    assert float(mean.detach()) == pytest.approx(float((values * weights).sum() / weights.sum()))
    mean.backward()
    torch.testing.assert_close(torch.cat([part.grad for part in parts]), whole.grad)
