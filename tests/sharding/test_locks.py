"""Two runs at once: the second is refused in one line that names the first; a dead run holds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding.locks import alone, at_work

HOLDER = """
import sys, time
from pathlib import Path
from fer_pipeline.sharding.locks import at_work
with at_work(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(1000)
"""


def holder(store: Path, owner: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store), owner], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_second_run_is_refused_and_others_are_not(tmp_path: Path) -> None:
    process = holder(tmp_path, "embed@street")
    try:
        told = (
            rf"another run of embed@street is at work on .*\(process {process.pid} on .*, since 20..-.*\); wait for it"
        )
        with pytest.raises(DataError, match=told) as raised, at_work(tmp_path, "embed@street"):
            pass
        assert "\n" not in str(raised.value)
        with at_work(tmp_path, "embed@studio"), at_work(tmp_path, "align@street"):
            pass
        with (
            pytest.raises(DataError, match=rf"in use: embed@street is at work \(process {process.pid} "),
            alone(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with at_work(tmp_path, "embed@street"):
        pass
    with alone(tmp_path):
        pass


def test_a_run_that_failed_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), at_work(tmp_path, "embed@street"):
        1 / 0  # noqa: B018
    with at_work(tmp_path, "embed@street"), pytest.raises(DataError, match="embed@street"), alone(tmp_path):
        pass


def test_who_comes_alone_sweeps_what_dead_runs_left(tmp_path: Path) -> None:
    left = tmp_path / "shards" / "ab" / ".abc.12345678.tmp"
    folder = tmp_path / "shards" / "ab" / ".xyz.12345678.tmp"
    finished = tmp_path / "shards" / "ab" / "abc"
    folder.mkdir(parents=True)
    for path in (left, folder / "faces.parquet", finished):
        path.write_bytes(b"half")
    process = holder(tmp_path / "elsewhere", "embed@street")
    process.kill()
    process.wait()
    with at_work(tmp_path, "embed@street"):
        assert list((tmp_path / "shards").rglob("*")) == [finished.parent, finished]
        left.write_bytes(b"half")  # of this run
        with at_work(tmp_path, "embed@studio"):
            assert left.exists()
