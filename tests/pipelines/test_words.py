"""What DVC says: its real lines, beside stages that print the same words themselves."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.walk import Outcome
from pipelines.words import Words, is_hint

LIAR = "echo \"Stage 'x' didn't change, skipping\"; echo Unable to acquire lock; echo 'git add x'"
RAN = ["Running stage 'x':", "> python x.py"]


def heard(lines: list[str]) -> Words:
    words = Words()
    for line in lines:
        words.hear(line)
    return words


def test_the_real_lines_of_dvc(tmp_path: Path, new_repository: Callable[..., Path]) -> None:
    graph = f"stages:\n  a@b:\n    cmd: |\n      {LIAR}; cat in > out\n    deps: [in]\n    outs: [out]\n"
    folder = new_repository(tmp_path, {"dvc.yaml": graph.replace("a@b", "a"), "in": "1"})

    def repro() -> list[str]:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "a"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    first = repro()
    assert heard(first).outcome is Outcome.COMPLETED, first
    assert not heard(first).busy
    shown = [line for line in first if line.strip() and not is_hint(line)]
    assert [line for line in shown if "git add" in line] == [f"> {LIAR}; cat in > out", "git add x"]
    assert not any(line.startswith("To ") for line in shown)
    assert heard(repro()).outcome is Outcome.CACHED
    (folder / "dvc.lock").unlink()
    assert heard(repro()).outcome is Outcome.RUN_CACHE


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ([], Outcome.COMPLETED),
        (["'raw.dvc' didn't change, skipping"], Outcome.CACHED),
        (["Stage 'sub/dvc.yaml:a@b' didn't change, skipping"], Outcome.CACHED),
        (["Verifying data sources in stage: 'raw.dvc'"], Outcome.COMPLETED),
        ([*RAN, "Stage 'inner' didn't change, skipping"], Outcome.COMPLETED),
        ([*RAN, "Stage 'inner' is cached - skipping run, checking out outputs"], Outcome.COMPLETED),
        (["it didn't change, skipping"], Outcome.COMPLETED),
    ],
)
def test_only_dvcs_own_lines_count(lines: list[str], outcome: Outcome) -> None:
    assert heard(lines).outcome is outcome


@pytest.mark.parametrize(
    ("line", "busy"),
    [
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running", True),
        ("ERROR: failed to reproduce 'a': '/w/out' is busy, it is being blocked by:", True),
        ("\x1b[31mERROR\x1b[39m: Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted", True),
        ("Unable to acquire lock of the camera", False),
        ("ERROR: failed to run: python x.py, exited with 1", False),
    ],
)
def test_a_busy_dvc_is_told_from_a_stage_that_failed(line: str, busy: bool) -> None:
    assert heard([*RAN, line]).busy is busy
