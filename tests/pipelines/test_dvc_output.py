"""Output of commands: whole lines in order, the last states of bars, and what DVC's real lines mean."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.process_tree import MAX_CHARACTERS, SECONDS_BETWEEN_REDRAWS, Line, LineSplitter
from pipelines.reproduce import HINTS, DvcOutput
from pipelines.workspace import Outcome

LIAR = "echo \"Stage 'x' didn't change, skipping\"; echo Unable to acquire lock; echo 'git add x'"
RAN = ["Running stage 'x':", "> python x.py"]


def cut(pieces: list[bytes], *, seconds: float = 0.0) -> list[Line]:
    """The lines of a stream whose pieces come `seconds` apart."""
    lines = LineSplitter()
    found = [line for at, piece in enumerate(pieces) for line in lines.feed(piece, at * seconds)]
    return [*found, *lines.close()]


def texts(pieces: list[bytes]) -> list[str]:
    return [line.text for line in cut(pieces) if line.complete]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_pieces_of_any_size_give_the_same_lines(size: int) -> None:
    stream = "eins\nzw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf\n\n\tdrei\r\nvier".encode()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert texts(pieces) == ["eins", "zwölf", "", "\tdrei", "vier"]


def test_only_the_last_state_of_a_redrawn_line_is_kept() -> None:
    assert texts([b"\r 1%", b"\r 2%\r", b" 3%", b"\n\r 4%\r 5%\r      \r", b"done\nend\r"]) == [" 3%", "done", "end"]


def test_a_bar_is_shown_at_most_twice_a_second() -> None:
    bar = [f"{step}%\r".encode() for step in range(1000)]
    shown = cut([*bar, b"\n"], seconds=0.01)
    assert [line.text for line in shown if line.complete] == ["999%"]
    assert 0.9 < (len(shown) - 1) * SECONDS_BETWEEN_REDRAWS / 10 <= 1.1
    numbers = [int(line.text[:-1]) for line in shown]
    assert numbers == sorted(numbers)


def test_a_bar_that_pauses_is_shown_once_and_not_again_at_its_end() -> None:
    lines = LineSplitter()
    assert list(lines.feed(b"\r10%", 0)) == []  # it may be half drawn
    assert list(lines.pause(0.1)) == [Line("10%", complete=False)]
    assert list(lines.pause(9)) == []
    assert list(lines.feed(b"\n", 10)) == [Line("10%", new=False)]
    assert list(lines.feed(b"10%\n", 11)) == [Line("10%")]


def test_a_line_without_an_end_is_not_shown_by_halves() -> None:
    lines = LineSplitter()
    assert list(lines.feed(b"Downloading ... ", 0)) == []
    assert list(lines.pause(5)) == []
    assert list(lines.feed(b"done\n", 6)) == [Line("Downloading ... done")]


@pytest.mark.parametrize("letter", ["a", "ö", "€", "😀"])
def test_a_long_line_is_cut_and_says_so(letter: str) -> None:
    whole, long = letter * MAX_CHARACTERS, letter * (MAX_CHARACTERS * 5)
    size = len(long.encode())
    assert texts([whole.encode(), b"\n", long.encode()[:777], long.encode()[777:], b"\nnext\n"]) == [
        whole,
        f"{whole} … (line of {size:,} bytes cut)",
        "next",
    ]


def test_a_line_of_any_length_takes_little_memory() -> None:
    lines = LineSplitter()
    for _ in range(1000):
        assert list(lines.feed(b"x" * 65536, 0)) == []
    assert len(lines._text.start) + len(lines._state.start) <= 8 * MAX_CHARACTERS
    assert "65,536,000 bytes cut" in next(lines.close()).text


def test_rubbish_becomes_text_that_a_database_takes() -> None:
    rubbish = np.random.default_rng(0).bytes(50_000)
    found = cut([rubbish])
    assert len([line for line in found if line.complete]) >= rubbish.count(b"\n")
    for line in found:
        line.text.encode("utf-8")  # no half characters
        assert not {chr(code) for code in range(32)} & set(line.text) - {"\t", "\x1b"}
    assert texts([b"a\x00b\x1b[31mred\xff\n"]) == ["a\N{REPLACEMENT CHARACTER}b\x1b[31mred\N{REPLACEMENT CHARACTER}"]


def read_all(lines: list[str]) -> DvcOutput:
    output = DvcOutput()
    for line in lines:
        output.add(line)
    return output


def test_the_real_lines_of_dvc(tmp_path: Path, new_repository: Callable[..., Path]) -> None:
    graph = f"stages:\n  a@b:\n    cmd: |\n      {LIAR}; cat in > out\n    deps: [in]\n    outs: [out]\n"
    folder = new_repository(tmp_path, {"dvc.yaml": graph.replace("a@b", "a"), "in": "1"})

    def repro() -> list[str]:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", "a"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        return done.stdout.splitlines()

    first = repro()
    assert read_all(first).outcome is Outcome.COMPLETED, first
    assert not read_all(first).busy
    shown = [line for line in first if line.strip() and not line.startswith(HINTS)]
    assert [line for line in shown if "git add" in line] == [f"> {LIAR}; cat in > out", "git add x"]
    assert not any(line.startswith("To ") for line in shown)
    assert read_all(repro()).outcome is Outcome.CACHED
    (folder / "dvc.lock").unlink()
    assert read_all(repro()).outcome is Outcome.RUN_CACHE


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
    assert read_all(lines).outcome is outcome


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
    assert read_all([*RAN, line]).busy is busy
