"""Work spread over processes: all of it is done, in each process in turn, and a fault is told."""

import importlib
import os
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from fer_pipeline.core.errors import DataError, PipelineError
from fer_pipeline.training.shares import ignore_steps, run_shares

WORKS = """
import os
import time
from fer_pipeline.core.errors import DataError

def write(folder, items, advance):
    for item in items:
        (folder / item).write_text(str(os.getpid()))
        advance(2)
        advance(10, earlier=True)
        advance(0, planned=100)

def fail(folder, items, advance):
    write(folder, [item for item in items if item != "b"], advance)
    if "b" in items:
        raise DataError("b is bad; mend it")

def die(folder, items, advance):
    write(folder, [item for item in items if item != "b"], advance)
    if "b" in items:
        os.kill(os.getpid(), 9)

def fail_first(folder, items, advance):
    if "a" in items:
        while not (folder / "b").exists():
            time.sleep(0.01)
        raise DataError("a is bad; mend it")
    write(folder, items, advance)
    while True:
        time.sleep(0.01)
        advance(1)
"""


@pytest.fixture
def works(tmp_path_factory, monkeypatch) -> ModuleType:
    folder = tmp_path_factory.mktemp("works")
    (folder / "works_of_a_test.py").write_text(WORKS)
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("works_of_a_test")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_is_done_and_counted(tmp_path: Path, works, workers: int) -> None:
    seen: list[int] = []
    earlier_steps: list[int] = []
    more: list[int] = []

    def advance(steps: int, /, *, earlier: bool = False, planned: int = 0) -> None:
        (earlier_steps if earlier else seen).append(steps)
        more.append(planned)

    run_shares(partial(works.write, tmp_path), ["a", "b", "c"], workers=workers, advance=advance)
    by = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(by) == {"a", "b", "c"}
    assert sum(seen) == 6
    assert sum(earlier_steps) == 30
    assert sum(more) == 300
    assert by["a"] == by["c"] == str(os.getpid()), "the first share is done here"
    assert (by["b"] == str(os.getpid())) == (workers == 1)


def test_a_fault_in_one_process_is_reported_after_the_others_are_done(tmp_path: Path, works) -> None:
    with pytest.raises(DataError, match="b is bad; mend it"):
        run_shares(partial(works.fail, tmp_path), ["a", "b", "c"], workers=2, advance=ignore_steps)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c"}


def test_a_killed_process_is_one_line(tmp_path: Path, works) -> None:
    with pytest.raises(PipelineError, match="a training process was killed"):
        run_shares(partial(works.die, tmp_path), ["a", "b"], workers=2, advance=ignore_steps)
    assert (tmp_path / "a").exists()


def test_a_fault_here_ends_the_others(tmp_path: Path, works) -> None:
    """The other process would go on for ever."""
    with pytest.raises(DataError, match="a is bad; mend it"):
        run_shares(partial(works.fail_first, tmp_path), ["a", "b"], workers=2, advance=ignore_steps)
