"""Jobs in processes: all of them are made, whoever dies, and the dead one is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fer_pipeline.alignment.workers import DIED, spread

WORK = """
import os
import signal

import torch


def begin():
    return work


def work(job):
    if job == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"fault {job}" if job % 5 == 4 else (None if torch.get_num_threads() == 1 else "threads")
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_made_and_faults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    (tmp_path / "work_of_a_test.py").write_text(WORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import work_of_a_test  # pyright: ignore[reportMissingImports]

    jobs = [job for job in range(18) if workers > 1 or job != 13]
    found = dict(spread(jobs, begin=work_of_a_test.begin, workers=workers, preload="torch"))
    expected = {job: f"fault {job}" if job % 5 == 4 else None for job in jobs}
    assert found == (expected | {13: DIED} if workers > 1 else expected)
    sys.modules.pop("work_of_a_test")


ORPHANS = """
import os
import time
from pathlib import Path

from fer_pipeline.alignment.workers import spread


def begin():
    Path(f"worker-{os.getpid()}").touch()
    return time.sleep


if __name__ == "__main__":
    list(spread([1000] * 4, begin=begin, workers=2, preload="torch"))
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


def test_no_job_begins_nothing() -> None:
    assert list(spread([], begin=lambda: pytest.fail("begun"), workers=4, preload="torch")) == []
