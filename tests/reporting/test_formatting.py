"""The small parts: numbers in words, CSV cells, charts, costs, confusions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.evaluation.statistics import Interval, Resampling, mean_interval
from fer_pipeline.reporting.charts import BLUE, INK, VERMILION, Line, Look, bars, choose_looks, dots, lines
from fer_pipeline.reporting.formatting import count, listing, percent, plural, plus_minus, points, span, visible
from fer_pipeline.reporting.results import compute_result, mix_with_white, shade_confusion
from fer_pipeline.reporting.tables import write_table
from fer_pipeline.reporting.trainings import Timing, describe_length, find_loss, load_timings


def test_numbers_in_words() -> None:
    assert (percent(0.7134), percent(None), percent(math.nan), percent(1.0, 0)) == (
        "71.3",
        "\N{EN DASH}",
        "\N{EN DASH}",
        "100",
    )
    assert (points(0.0213), points(-0.0213), points(0.0004), points(-0.0004)) == (
        "+2.1",
        "\N{MINUS SIGN}2.1",
        "0.0",
        "0.0",
    )
    assert plus_minus(Interval(0.7, 0.6, 0.8, 5)) == "70.0 ± 10.0"
    assert plus_minus(Interval(0.7, None, None, 1)) == "70.0"
    assert span(Interval(0.01, -0.02, 0.04, 5), signed=True) == "\N{MINUS SIGN}2.0 to +4.0"
    assert (plural(1, "seed"), plural(2, "seed"), plural(1200, "face")) == ("1 seed", "2 seeds", "1,200 faces")
    assert [listing(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert (count(12345.0), count(None)) == ("12,345", "\N{EN DASH}")
    assert visible("a\u202eb\nc") == "a\ufffdb\ufffdc"


def test_csv_cells_cannot_become_formulas(tmp_path: Path) -> None:
    write_table(
        tmp_path / "a.csv",
        [{"name": "=1+1", "value": -0.5, "none": None}, {"name": 'a "b", c', "value": math.nan, "none": 3}],
    )
    assert (tmp_path / "a.csv").read_text() == 'name,value,none\n\'=1+1,-0.500000,\n"a ""b"", c",,3\n'
    write_table(tmp_path / "b.csv", [])
    assert not (tmp_path / "b.csv").exists()


def test_charts_are_the_same_bytes_for_the_same_numbers_and_take_any_name() -> None:
    def draw(value: float) -> tuple[bytes, ...]:
        dot = Interval(value, 0.1, None, 1), Look("#000000", "o"), "_hidden$"
        return (
            bars([("$\\frac{a}<b>&", value, "#0072b2", "x")], xlabel="s"),
            lines(
                [Line("_a", [1, 2], [value, math.nan], "#0072b2")],
                xlabel="x",
                ylabel="y",
                logarithmic=True,
                mark=(1.5, ""),
            ),
            dots([("a\nb", [dot])], xlabel="x"),
        )

    assert draw(0.5) == draw(0.5)
    assert all(one != other for one, other in zip(draw(0.5), draw(0.6), strict=True))
    assert all(picture.startswith(b"<?xml") and b"date" not in picture for picture in draw(0.5))


def test_seconds_per_epoch_by_hand(tmp_path: Path) -> None:
    for recipe, seconds in {"baseline": (1.0, 2.0), "vas": (14.0, 16.0)}.items():
        seed = {"seconds_per_step": 0.1, "steps_per_epoch": 10, "steps": 100}
        seed |= {"times_seen": {"labelled": 12.5}, "stopped_rising": None}
        record = {"seeds": {str(k): {**seed, "seconds_per_epoch": value} for k, value in enumerate(seconds)}}
        (tmp_path / f"{recipe}.json").write_text(json.dumps(record))
    (tmp_path / "das.json").write_text('{"seeds": {}}')
    found = load_timings(tmp_path, ["baseline", "vas", "das", "none"], baseline="baseline")
    assert [(row.recipe, row.seconds.mean, row.times_baseline) for row in found] == [
        ("baseline", 1.5, 1.0),
        ("vas", 15.0, 10.0),
    ]
    assert [(row.steps_text, row.labelled_seen, row.stopped_rising) for row in found] == [("100", 12.5, None)] * 2
    (tmp_path / "das.json").write_text('{"seeds": {"1": {}}}')
    with pytest.raises(DataError, match="no record of timings"):
        load_timings(tmp_path, ["das"], baseline="baseline")


@pytest.mark.parametrize(
    ("stopped", "curve", "said"),
    [
        (None, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "fixed number of steps (90 to 120), not until"),
        (None, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], "at the end it was still rising for vas"),
        (None, [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5], "at the end it was not rising any more"),
        (None, [], "no validation part, so whether it was still rising is not known"),
        (True, [], "Every recipe was trained until its own validation had stopped rising (90 to 120 steps)"),
        (False, [], "stopped rising, but for vas, which at_most ended while it was rising (90 to 120 steps)"),
    ],
)
def test_the_page_says_first_how_long_recipes_were_trained(stopped: bool | None, curve: list[float], said: str) -> None:
    seconds = mean_interval([1.0, 2.0])
    timing = Timing("vas", seconds, 0.1, 10, (90, 120), 4.5, stopped, None)
    history = [{"steps": 1.0, "validation_mean_class_accuracy": value} for value in curve] or [{"steps": 1.0}]
    assert said in describe_length([timing], {"vas": [history]})
    assert timing.steps_text == "90, 120"


@pytest.mark.parametrize(
    ("names", "stopped", "said"),
    [
        ((), None, "head was solved for at once, alike for all seeds with the same data"),
        (("vas",), True, "every other recipe was trained until its own validation had stopped rising (90 steps)"),
        (("vas",), False, "rising, but for vas, which at_most ended while it was rising (90 steps)"),
        (("vas", "das"), None, "the others were trained for a fixed number of steps (90), not until their validation"),
    ],
)
def test_what_is_solved_for_was_trained_for_no_number_of_steps(names: tuple, stopped: bool | None, said: str) -> None:
    """It is no recipe of which the rest of the sentence speaks."""
    head = Timing("head", mean_interval([1.0]), 0.1, 10, (1, 1), 1, None, None)
    trained = [Timing(name, mean_interval([1.0]), 0.1, 10, (90,), 4.5, stopped, None) for name in names]
    text = describe_length([head, *trained], {})
    assert text.startswith("head was solved for at once, alike for all seeds with the same data")
    assert said in text
    assert "Every" not in text


def test_confusion_table_is_the_share_over_all_seeds(whole: Any) -> None:
    predictions = whole.project.predictions("vas", "film")
    rows = shade_confusion(compute_result("vas", "film", predictions, Resampling(bootstrap=100, by_subject=False)))
    assert rows[predictions.classes.index("fear")] is None
    total = sum(predictions.confusions)
    for k, row in enumerate(rows):
        if row is not None:
            shares = 100 * total[k] / total[k].sum()
            assert [text for text, _, _ in row] == [f"{share:.0f}" for share in shares]
    csv_rows = [row for row in whole.table("confusion") if (row["recipe"], row["target"]) == ("vas", "film")]
    assert sum(int(row["count"]) for row in csv_rows) == total.sum()
    for row in csv_rows:
        assert float(row["share_low"]) - 1e-6 <= float(row["share"]) <= float(row["share_high"]) + 1e-6


def test_every_recipe_looks_different(whole: Any) -> None:
    project = whole.project
    found = choose_looks(list(project.recipes), baseline="baseline", controls=project.settings["controls"])
    assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == len(found)


def _luminance(colour: str) -> float:
    parts = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_words_on_every_shade_keep_their_contrast() -> None:
    """WCAG 2.1, 1.4.3: at least 4.5 between the ink and the darkest shades of a confusion."""
    for colour in (BLUE, VERMILION):
        light, dark = _luminance(mix_with_white(colour, 1.0)), _luminance(INK)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_census_counts_what_align_counted(whole: Any) -> None:
    rows = {(row["dataset"], row["split"]): row for row in whole.table("datasets")}
    train = rows["studio", "train"]
    assert (train["role"], train["pictures"], train["faces"], train["fear"]) == (
        "anchor, training, target",
        "50",
        "46",
        "11",
    )
    assert rows["street", "train"]["fear"] == ""  # nobody labelled it
    assert rows["street", "train"]["unlabelled"] == "120"
    assert {row["reason"]: row["pictures"] for row in whole.table("rejected")} == {"no_face": "3", "small": "1"}


def test_the_loss_that_is_compared_is_that_of_the_labelled_faces() -> None:
    """The sums of two strategies say nothing beside each other; else the first common column."""
    vas, maps = {"train_loss": 1.0, "train_labelled": 1.0}, {"train_loss": 400.0, "train_distance": 400.0}
    assert find_loss({"maps": [[maps]], "vas": [[vas]]}) == "train_labelled"
    assert find_loss({"maps": [[maps]], "other": [[{"train_extra": 2.0, "train_loss": 1.0}]]}) == "train_loss"
    assert find_loss({}) == ""
