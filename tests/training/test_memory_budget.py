"""Memory for images: what is free by hand-written files, and what fits where."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fer_pipeline.core.settings import Resources
from fer_pipeline.training.images import GIB, MemoryBudget, free_memory, memory_budget

CPU = torch.device("cpu")


def test_what_fits_is_taken_from_the_nearest_first() -> None:
    budget = MemoryBudget(CPU, memory=100, on_device=50)
    places = [budget.reserve(needed) for needed in (40, 40, 10, 70, 60)]
    assert places == ["device", "memory", "device", "shards", "memory"]
    assert (budget.reserve_up_to(7), budget.memory) == (0, 0)
    assert (MemoryBudget(CPU, memory=5).reserve_up_to(7), MemoryBudget(CPU, memory=9).reserve_up_to(7)) == (5, 7)


def test_free_is_the_lesser_of_machine_and_container(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=900 * 1024, available=500 * 1024))
    assert free_memory(tmp_path) == 500 * 1024
    (tmp_path / "memory.max").write_text("400000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\ninactive_file 60000\n")
    assert free_memory(tmp_path) == 400_000 - 300_000 + 60_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 500 * 1024
    monkeypatch.undo()
    assert free_memory(tmp_path) > 0


@pytest.mark.parametrize(("processes", "memory", "threads"), [(1, 3 * GIB, 4), (2, 1.5 * GIB, 2), (9, GIB / 3, 1)])
def test_processes_share_what_is_allowed(processes: int, memory: float, threads: int) -> None:
    budget = memory_budget(Resources(device="cpu", workers=4, memory_gb=3), CPU, processes=processes)
    assert (budget.memory, budget.on_device, budget.threads) == (int(memory), 0, threads)


def test_without_a_number_it_is_half_of_what_is_free() -> None:
    budget = memory_budget(Resources(device="cpu"), CPU)
    assert 0 < budget.memory <= 0.75 * free_memory()
