"""Rates and times left, by hand and by a clock of the test's own."""

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
    advance.skip(3000)
    clock[0] += 10
    advance(500)
    assert (advance.done, advance.rate, advance.seconds_left) == (3500, 50, 30)
    assert describe(advance) == "3,500/5,000 faces, 50.0 faces/s, 30 s left"
    advance(-100)  # a worker was lost
    assert (advance.done, advance.rate) == (3400, 40)


def test_without_a_total_nothing_is_left(clock: list[float]) -> None:
    advance = Progress("score", None, "faces")
    clock[0] += 2
    advance(10)
    assert advance.seconds_left is None
    assert describe(advance) == "10 faces, 5.0 faces/s"


def test_lines_come_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("embed street", 4000, "faces") as advance:
        for _ in range(4):
            clock[0] += 20
            advance(1000)
    assert capsys.readouterr().err.splitlines() == [
        "embed street: 2,000/4,000 faces, 50.0 faces/s, 40 s left",
        "embed street: 4,000/4,000 faces, 50.0 faces/s, 0 s left",
    ]


@pytest.mark.parametrize(("seconds", "words"), [(41.2, "41 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_in_the_unit_that_a_person_would_use(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words
