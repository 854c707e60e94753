"""Rates and times left, by hand and by a clock of the test's own."""

import queue
import threading
from types import SimpleNamespace

import pytest

from fer_pipeline.core import progress
from fer_pipeline.core.progress import Progress, describe, format_seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_was_there_already_says_nothing_of_the_rate(clock: list[float]) -> None:
    advance = Progress("embed street", 5000, "faces")
    assert (advance.rate, advance.seconds_left) == (0, None)
    advance(3000, earlier=True)
    clock[0] += 40
    advance(500)  # after a slow start: how long the rest takes is not known yet
    assert (advance.done, advance.rate, advance.seconds_left) == (3500, 12.5, None)
    clock[0] += 4
    advance(200)
    assert (advance.done, advance.rate, advance.seconds_left) == (3700, 50, None)
    clock[0] += 6
    advance(300)
    assert (advance.done, advance.rate, advance.seconds_left) == (4000, 50, 20)
    assert describe(advance) == "4,000/5,000 faces (3,000 of an earlier run), 50.0 faces/s, 20 s left"
    advance(-100)  # a worker was lost
    assert (advance.done, advance.rate) == (3900, 40)


def test_without_a_total_nothing_is_left(clock: list[float]) -> None:
    advance = Progress("score", None, "faces")
    clock[0] += 2
    advance(10)
    assert advance.seconds_left is None
    assert describe(advance) == "10 faces, 5.0 faces/s"


def test_the_plan_may_change(clock: list[float]) -> None:
    advance = Progress("train", 6000, "steps")
    advance(0, planned=4000)  # it has a second part
    assert describe(advance) == "0/10,000 steps"
    advance(1000)
    clock[0] += 10
    advance(1000)
    assert advance.seconds_left == (10_000 - 2000) / 100
    advance(0, planned=-7000)  # which ended early
    assert describe(advance) == "2,000/3,000 steps, 100.0 steps/s, 10 s left"
    unknown = Progress("score", None, "faces")
    unknown(5, planned=3)
    assert unknown.total is None


def test_lines_come_though_nothing_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that waits for the next item stands still while that item takes long."""
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(progress.sys, "stderr", SimpleNamespace(isatty=bool, write=lines.put, flush=bool))
    with progress.progress("embed street", 4000, "faces") as advance:
        assert lines.get(timeout=60) == "embed street: 0/4,000 faces\n"
        advance(1000)
        while not (line := lines.get(timeout=60)).startswith("embed street: 1,000/4,000 faces, "):
            assert line == "embed street: 0/4,000 faces\n"
    writers = [thread for thread in threading.enumerate() if "_write_lines" in thread.name]
    assert writers == [], "the thread ends with the work"


@pytest.mark.parametrize(("seconds", "words"), [(41.2, "41 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_in_the_unit_that_a_person_would_use(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words
