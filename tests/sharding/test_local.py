"""Jobs in local processes: all of them are made, whoever dies, and the dead one is told."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError, PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.jobs import WORKER_DIED, Job
from fer_pipeline.sharding.local import run_jobs

MAKERS = """
import os
import signal
from functools import partial

from fer_pipeline.core.errors import DataError


def begin(notes, device):
    import torch

    (notes / f"begun-{os.getpid()}").touch()
    return partial(make, notes)


def make(notes, job, path, advance):
    import torch

    if job.payload == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.payload == "kill once" and not (notes / "killed").exists():
        advance(3)
        (notes / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.payload == "fault":
        advance(2)
        path.write_text("half")
        raise ValueError("of the\\ndata")
    path.write_text(f"{job.name}: {torch.get_num_threads()} thread")
    advance(job.items)


def refuse(device):
    raise DataError("the model is damaged")


def die(device):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "makers_of_a_test.py").write_text(MAKERS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import makers_of_a_test  # pyright: ignore[reportMissingImports]

    yield makers_of_a_test
    sys.modules.pop("makers_of_a_test")


def job(number: int, payload: str = "") -> Job[str]:
    return Job(f"{number:032x}", f"part-{number:05d}", 7, payload)


def run(begin: Any, jobs: list[Job[str]], store: Path, *, workers: int, retries: int = 2) -> tuple[dict[str, Any], int]:
    """The faults by name, and the items told."""
    told: list[int] = []
    outcomes = run_jobs(
        jobs,
        begin,
        store=Store(store, owner="stage@set"),
        resources=Resources(device="cpu", workers=workers, retries=retries),
        preload="torch",
        advance=told.append,
    )
    return {outcome.job.name: outcome.fault for outcome in outcomes}, sum(told)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_made_and_faults_are_told(tmp_path: Path, makers: ModuleType, workers: int) -> None:
    jobs = [job(number, "fault" if number % 5 == 4 else "") for number in range(12)]
    found, told = run(partial(makers.begin, tmp_path), jobs, tmp_path / "store", workers=workers)
    faults = {job.name: "ValueError: of the data" if job.payload else None for job in jobs}
    assert found == faults
    assert told == 7 * len(jobs)
    store = Store(tmp_path / "store")
    for one in jobs:
        assert store.has(one.key) == (not one.payload)
        if not one.payload:
            assert store.shard(one.key).read_text() == f"{one.name}: 1 thread"
    assert not list((tmp_path / "store" / "shards").rglob("*.tmp"))
    assert len(list(tmp_path.glob("begun-*"))) == workers, "the model is loaded once a worker"


def test_a_shard_that_kills_its_worker_costs_no_other(tmp_path: Path, makers: ModuleType) -> None:
    payloads = {3: "kill", 5: "kill once"}
    jobs = [job(number, payloads.get(number, "")) for number in range(12)]
    found, told = run(partial(makers.begin, tmp_path), jobs, tmp_path / "store", workers=2)
    assert found == {one.name: WORKER_DIED if one.payload == "kill" else None for one in jobs}
    assert told == 7 * len(jobs), "what a lost worker had told is taken back"
    # Two workers, one for each try alone (twice, and once), and one in the place of each that died while jobs waited:
    # on a busy machine the other worker may have taken the last of them by then.
    assert 2 + 2 + 1 <= len(list(tmp_path.glob("begun-*"))) <= 2 + 2 + 2 + 1


def test_without_retries_a_lost_shard_is_lost(tmp_path: Path, makers: ModuleType) -> None:
    jobs = [job(number, "kill once" if number == 0 else "") for number in range(4)]
    found, _ = run(partial(makers.begin, tmp_path), jobs, tmp_path / "store", workers=2, retries=0)
    assert found == {one.name: WORKER_DIED if one.payload else None for one in jobs}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path, makers: ModuleType, workers: int) -> None:
    with pytest.raises(DataError, match="the model is damaged"):
        run(makers.refuse, [job(0), job(1)], tmp_path / "store", workers=workers)


def test_workers_that_die_while_they_load_end_the_run(tmp_path: Path, makers: ModuleType) -> None:
    with pytest.raises(PipelineError, match=r"workers die while they load .*fewer resources\.workers"):
        run(makers.die, [job(number) for number in range(4)], tmp_path / "store", workers=2)


def test_jobs_are_planned_as_they_are_needed(tmp_path: Path, makers: ModuleType) -> None:
    """The queue is bounded: planning a pool reads it, and its samples lie in memory until their shard is made."""
    planned: list[int] = []

    def jobs() -> Iterator[Job[str]]:
        for number in range(40):
            planned.append(number)
            yield job(number)

    resources = Resources(device="cpu", workers=2)
    options: dict[str, Any] = {"store": Store(tmp_path / "store"), "preload": "torch", "advance": lambda _: None}
    done = 0
    for _ in run_jobs(jobs(), partial(makers.begin, tmp_path), resources=resources, **options):
        done += 1
        assert len(planned) <= done + 2 * 2
    assert done == 40


def test_a_run_that_is_left_stops_its_workers(tmp_path: Path, makers: ModuleType) -> None:
    resources = Resources(device="cpu", workers=2)
    options: dict[str, Any] = {"store": Store(tmp_path / "store"), "preload": "torch", "advance": lambda _: None}
    outcomes = run_jobs((job(n) for n in range(9)), partial(makers.begin, tmp_path), resources=resources, **options)
    next(outcomes)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not any(is_running(int(path.name.removeprefix("begun-"))) for path in tmp_path.glob("begun-*"))


ORPHANS = """
import os
import time
from functools import partial
from pathlib import Path

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.jobs import Job
from fer_pipeline.sharding.local import run_jobs


def begin(notes, device):
    Path(notes, f"worker-{os.getpid()}").touch()
    return lambda job, path, advance: time.sleep(1000)


if __name__ == "__main__":
    jobs = [Job(f"{number:032x}", "j", 1, None) for number in range(4)]
    list(run_jobs(jobs, partial(begin, os.getcwd()), store=Store(Path("store")), preload="torch",
                  resources=Resources(device="cpu", workers=2), advance=print))
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Killed without a word, as by the system when memory is short: idle workers would wait for ever."""
    (tmp_path / "orphans.py").write_text(ORPHANS, encoding="utf-8")
    parent = subprocess.Popen(
        [sys.executable, "orphans.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    workers: list[int] = []
    while len(workers) < 2:
        assert parent.poll() is None
        workers = [int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*")]
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(is_running(worker) for worker in workers):
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_job_begins_nothing(tmp_path: Path) -> None:
    assert run(lambda device: pytest.fail("begun"), [], tmp_path, workers=4) == ({}, 0)
