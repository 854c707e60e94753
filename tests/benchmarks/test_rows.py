"""Ratios, targets and words of rows, and the arithmetic on rounds, by hand."""

import math

import pytest

from benchmarks.harness.report import cells, number
from benchmarks.harness.rounds import Rounds, SideError
from benchmarks.harness.rows import bounded, cheaper, compared, unmeasured


def test_a_rate_must_reach_and_a_cost_must_not_pass_its_target() -> None:
    assert compared("w", "images/s", 60.0, 30.0, at_least=2.0).met is True
    assert compared("w", "images/s", 59.9, 30.0, at_least=2.0).met is False
    assert compared("w", "CPU-s", 22.0, 10.0, at_most=2.2).met is True
    assert compared("w", "CPU-s", 22.1, 10.0, at_most=2.2).met is False
    row = compared("w", "CPU-s", 3.0, 4.0, at_least=0.5, at_most=0.7)
    assert (row.ratio, row.target, row.met) == (0.75, "≥ 0.5×, ≤ 0.7×", False)


def test_a_lower_cost_is_so_many_times_less() -> None:
    row = cheaper("w", "CPU-s", 2.0, 7.0, at_least=3.5)
    assert (row.ours, row.peer, row.ratio, row.target, row.met) == (2.0, 7.0, 3.5, "≥ 3.5× less", True)
    assert cheaper("w", "CPU-s", 2.0, 6.9, at_least=3.5).met is False


def test_a_row_without_target_is_neither_met_nor_missed() -> None:
    row = compared("w", "CPU-s", 1.0, 2.0)
    assert (row.ratio, row.target, row.met, row.verdict) == (0.5, "", None, "")


def test_a_bound_has_no_peer() -> None:
    row = bounded("w", "MB", 300.0, at_most=300)
    assert (row.peer, row.ratio, row.target, row.met) == (None, None, "≤ 300", True)
    assert bounded("w", "share", 0.994, at_least=0.995).met is False


def test_a_figure_that_is_no_number_meets_nothing() -> None:
    assert compared("w", "images/s", math.nan, 1.0, at_least=2).met is False
    assert bounded("w", "MB", math.nan, at_most=300).met is False


def test_cells_are_words() -> None:
    assert cells(compared("w", "images/s", 61.234, 30.0, at_least=2, note="n")) == (
        "w",
        "images/s",
        "61.2",
        "30",
        "2.04×",
        "≥ 2×",
        "met",
        "n",
    )
    assert cells(unmeasured("w", "it died")) == ("w", "not measured", "", "", "", "", "", "it died")


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, ""), (0.000123456, "0.000123"), (12.345, "12.3"), (1234.5, "1,234"), (5_822_653, "5,822,653")],
)
def test_numbers_have_three_digits_at_least(value: float | None, words: str) -> None:
    assert number(value) == words


def test_rounds_know_least_median_and_spread() -> None:
    rounds = Rounds("ours", cpu=[4.0, 2.0, 3.0, 5.0], wall=[4.5, 2.5, 8.0, 9.0])
    assert (rounds.best, rounds.median, rounds.spread) == (2.0, 3.5, 3.0 / 3.5)
    assert rounds.quickest == 2.5


def test_rounds_of_a_failed_side_have_no_figures() -> None:
    rounds = Rounds("peer", cpu=[4.0], fault="the process died (SIGKILL)")
    for figure in ("best", "median", "spread", "quickest"):
        with pytest.raises(SideError, match=r"^peer: the process died \(SIGKILL\)$"):
            getattr(rounds, figure)
