"""The account of a run: what was made, reused and failed; what a full disk, damage and a lost shard do to it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.jobs import Advance, Job, Maker, Work
from fer_pipeline.sharding.run import ShardResults, make_shards


def job(number: int, payload: str = "") -> Job[str]:
    return Job(f"{number:032x}", f"set/part-{number:05d}", 5, payload)


def setup(device: str) -> Maker:
    def make(job: Job[Any], path: Path, advance: Advance) -> None:
        if job.payload == "full":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        if job.payload:
            raise DataError(f"{job.name} {job.payload}")
        path.write_bytes(job.name.encode())
        advance(job.items)

    return make


def run(store: Path, jobs: Iterable[Job[str]], *, allowed: int = 0, verify: bool = False) -> ShardResults:
    return make_shards(
        "stage",
        "set",
        Work(iter(jobs), setup, part=lambda job, items, folder: job, unit="faces", total=15),
        store=store,
        resources=Resources(device="cpu", workers=1),
        allowed_failures=allowed,
        verify=verify,
    )


def progress_file(store: Path) -> dict[str, Any]:
    return json.loads((store / "progress" / "stage@set.json").read_text(encoding="utf-8"))


def test_the_account_of_a_run_that_grows(tmp_path: Path) -> None:
    made = run(tmp_path, [job(0), job(1)])
    assert made.counts == {"shards": 2, "made": 2, "reused": 0, "failed": 0}
    made = run(tmp_path, [job(0), job(2), job(1)])
    assert made.counts == {"shards": 3, "made": 1, "reused": 2, "failed": 0}
    assert [one.name for one in made.jobs] == ["set/part-00000", "set/part-00002", "set/part-00001"]
    assert made.finished == made.jobs
    assert made.warnings == ()
    written = progress_file(tmp_path)
    assert (written["state"], written["done"], written["total"], written["unit"]) == ("finished", 15, 15, "faces")
    assert written["shards"] == {"made": 1, "reused": 2, "failed": 0}
    assert written["pid"] == os.getpid()


def test_equal_shards_are_made_once(tmp_path: Path) -> None:
    """As those of the equal models of several seeds."""
    made = run(tmp_path, [job(0), job(1), job(0)])
    assert made.counts == {"shards": 3, "made": 2, "reused": 1, "failed": 0}
    assert [one.name for one in made.finished] == ["set/part-00000", "set/part-00001", "set/part-00000"]
    failed = run(tmp_path, [job(2, "is damaged"), job(0), job(2, "is damaged")], allowed=1)
    assert failed.counts == {"shards": 3, "made": 0, "reused": 2, "failed": 1}
    assert [one.name for one in failed.finished] == ["set/part-00000"]


def test_failures_are_told_after_the_others_are_made(tmp_path: Path) -> None:
    jobs = [job(0, "is damaged"), job(1), job(2, "is damaged too"), job(3)]
    message = (
        r"^stage set/part-00000 is damaged \(and 1 more\); 2 shards made, 0 reused, 2 failed; finished shards are kept"
    )
    with pytest.raises(DataError, match=message):
        run(tmp_path, jobs, allowed=1)
    assert progress_file(tmp_path)["shards"] == {"made": 2, "reused": 0, "failed": 2}
    made = run(tmp_path, jobs, allowed=2)
    assert made.counts == {"shards": 4, "made": 0, "reused": 2, "failed": 2}
    assert made.warnings == ("set/part-00000 is damaged", "set/part-00002 is damaged too")
    assert [one.name for one in made.finished] == ["set/part-00001", "set/part-00003"]
    with pytest.raises(DataError, match="0 shards made, 0 reused, 1 failed"):
        run(tmp_path / "other", [job(0, "is damaged")], allowed=5)


def test_a_full_disk_ends_the_run_at_once_and_leaves_no_half_shard(tmp_path: Path) -> None:
    jobs = [job(0), job(1, "full"), job(2)]
    with pytest.raises(
        DataError, match=r"part-00001: .*No space left on device: the disk of the store is full; .* free some space"
    ) as raised:
        run(tmp_path, jobs, allowed=3)
    assert "\n" not in str(raised.value)
    store = Store(tmp_path)
    assert [store.has(one.key) for one in jobs] == [True, False, False]
    assert not list(tmp_path.rglob("*.tmp"))
    assert progress_file(tmp_path)["state"] == "failed"
    assert run(tmp_path, [job(number) for number in range(3)]).counts["made"] == 2


def test_damage_in_the_store_is_repaired_and_reported(tmp_path: Path) -> None:
    run(tmp_path, [job(0), job(1)])
    Store(tmp_path).shard(job(1).key).write_bytes(b"")
    made = run(tmp_path, [job(0), job(1)])
    assert made.counts == {"shards": 2, "made": 1, "reused": 1, "failed": 0}
    assert made.warnings == ("1 finished shards were damaged in the store; they were made again",)
    shard = Store(tmp_path).shard(job(0).key)
    state = shard.stat()
    shard.write_bytes(b"set/part-0000x")
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(tmp_path, [job(0), job(1)]).counts["reused"] == 2
    assert run(tmp_path, [job(0), job(1)], verify=True).counts["made"] == 1
    assert shard.read_bytes() == b"set/part-00000"


def test_a_run_whose_planning_fails_forgets_nothing(tmp_path: Path) -> None:
    run(tmp_path, [job(0), job(1)])
    before = Store(tmp_path).last_runs()

    def planned() -> Iterator[Job[str]]:
        yield job(0)
        raise DataError("the data set is gone")

    with pytest.raises(DataError, match="gone"):
        run(tmp_path, planned())
    assert Store(tmp_path).last_runs() == before


def test_the_engine_imports_no_torch() -> None:
    modules = ("run", "local", "locks", "ray")
    imports = ", ".join(["fer_pipeline.commands.plan", *(f"fer_pipeline.sharding.{name}" for name in modules)])
    code = f"import sys, {imports}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
