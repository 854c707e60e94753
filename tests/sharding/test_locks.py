"""Two runs at once: the second is refused in one line that names the first; a dead run holds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding.locks import lock_exclusively, lock_for_run

HOLDER = """
import sys, time
from pathlib import Path
from fer_pipeline.sharding.locks import lock_for_run
with lock_for_run(Path(sys.argv[1]), sys.argv[2]):
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
        message = (
            rf"another run of embed@street is at work on .*\(process {process.pid} on .*, since 20..-.*\); wait for it"
        )
        with pytest.raises(DataError, match=message) as raised, lock_for_run(tmp_path, "embed@street"):
            pass
        assert "\n" not in str(raised.value)
        with lock_for_run(tmp_path, "embed@studio"), lock_for_run(tmp_path, "align@street"):
            pass
        with (
            pytest.raises(DataError, match=rf"in use: embed@street is at work \(process {process.pid} "),
            lock_exclusively(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lock_for_run(tmp_path, "embed@street"):
        pass
    with lock_exclusively(tmp_path):
        pass


def test_a_run_that_failed_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_for_run(tmp_path, "embed@street"):
        1 / 0  # noqa: B018
    with (
        lock_for_run(tmp_path, "embed@street"),
        pytest.raises(DataError, match="embed@street"),
        lock_exclusively(tmp_path),
    ):
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
    with lock_for_run(tmp_path, "embed@street"):
        assert list((tmp_path / "shards").rglob("*")) == [finished.parent, finished]
        left.write_bytes(b"half")  # of this run
        with lock_for_run(tmp_path, "embed@studio"):
            assert left.exists()
