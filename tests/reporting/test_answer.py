"""The words of the first screen: fixed by the intervals, the same for every outcome."""

from pathlib import Path

import pytest

from fer_pipeline.core.settings import DatasetSettings, ProjectSettings, RecipeSettings
from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.answer import claims, headline
from fer_pipeline.reporting.forest import forest
from fer_pipeline.reporting.palette import looks
from fer_pipeline.reporting.results import ALL, Difference

NAMES = {"baseline": "labelled", "vas": "mined", "das": "distilled", "random_vas": "random"}


def world(**recipes: str) -> ProjectSettings:
    sets = {name: DatasetSettings(adapter="csv", path=Path(name)) for name in ("a", "p", "t", "u")}
    made = {name: RecipeSettings(use=use, data=Path("d")) for name, use in (recipes or NAMES).items()}
    return ProjectSettings(
        classes=("x", "y"),
        seeds=(1, 2),
        anchor="a",
        train="a",
        pools=("p",),
        targets=("t", "u"),
        datasets=sets,
        recipes=made,
    )


def row(
    recipe: str, low: float | None, mean: float, high: float | None, *, against: str = "baseline", target: str = ALL
) -> Difference:
    interval = Interval(mean, low, high, 1 if low is None else 5)
    return Difference(recipe, against, target, "mean_class_accuracy", interval, interval)


def both(recipe: str, *ends: float | None) -> list[Difference]:
    return [row(recipe, *ends, target="t"), row(recipe, *ends, target="u"), row(recipe, *ends)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vas", "das", "said"),
    [
        ((0.01, 0.02, 0.03), (0.001, 0.02, 0.04), "Mined faces help and distilled images help"),
        ((0.01, 0.02, 0.03), (-0.03, -0.02, -0.01), "Mined faces help and distilled images hurt"),
        (
            (-0.01, 0.02, 0.05),
            (-0.01, 0.0, 0.01),
            "Mined faces show no clear effect and distilled images show no clear effect",
        ),
    ],
)
def test_verdicts(vas: tuple[float, ...], das: tuple[float, ...], said: str) -> None:
    found = claims(world(), [*both("vas", *vas), *both("das", *das)], baseline="baseline")
    assert headline(found, baseline="baseline") == said


def test_one_seed_never_decides() -> None:
    rows = [*both("vas", None, 0.2, None), *both("das", None, -0.01, None)]
    found = claims(world(), rows, baseline="baseline")
    sizes = "Mined faces +20.0 points and Distilled images \N{MINUS SIGN}1.0 points"
    assert headline(found, baseline="baseline") == f"One seed only, so no verdict: {sizes} against baseline"
    assert "no interval" in found[0].detail


def test_claims_name_size_interval_and_control() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), row("vas", 0.004, 0.01, 0.016, against="random_vas")]
    [claim] = claims(world(), rows, baseline="baseline")
    assert claim.size == "+2.0"
    assert "averaged over 2 test sets" in claim.detail
    assert "+1.0 to +3.0" in claim.detail
    assert claim.control == "Against its control random_vas: +1.0 (+0.4 to +1.6)."


def test_nothing_to_compare_is_said() -> None:
    assert "Nothing to compare" in headline(
        claims(world(baseline="labelled"), [], baseline="baseline"), baseline="baseline"
    )


def test_two_recipes_of_a_kind_are_named() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), *both("big", -0.01, 0.0, 0.01)]
    found = claims(world(baseline="labelled", vas="mined", big="mined"), rows, baseline="baseline")
    assert headline(found, baseline="baseline") == "Mined faces (vas) help and mined faces (big) show no clear effect"


def test_forest_places_by_hand() -> None:
    """Ends -0.02 and 0.04: steps of 0.01, a scale from -0.03 to 0.05, so zero lies at 37.5 %."""
    found = forest([row("vas", -0.02, 0.01, 0.04)], looks(world()))
    assert found is not None
    [one] = found.groups[0].rows
    assert [tick.place for tick in found.ticks if tick.is_zero] == [37.5]
    assert one.dot == 50.0
    assert (one.left, one.width) == (12.5, 75.0)
    assert one.words == "+1.0 (\N{MINUS SIGN}2.0 to +4.0)"
    assert [tick.words for tick in found.ticks][:4] == ["\N{MINUS SIGN}3", "\N{MINUS SIGN}2", "\N{MINUS SIGN}1", "0"]
    assert forest([], {}) is None
