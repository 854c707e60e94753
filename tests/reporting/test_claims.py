"""The words of the first screen: fixed by the intervals, the same for every outcome."""

from collections.abc import Mapping, Sequence

import pytest

from fer_pipeline.evaluation.statistics import Contrast, Decision, Interval, Part
from fer_pipeline.reporting.charts import choose_looks
from fer_pipeline.reporting.claims import Claim, describe_seeds, make_claims, place_forest, write_headline, write_rule
from fer_pipeline.reporting.results import ALL, Comparisons, Difference

RECIPES = ("baseline", "vas", "das", "random_vas")
DESCRIPTIONS = {"vas": "Mined faces", "das": "Distilled images"}


def claim(
    rows: list[Difference], recipes: Sequence[str] = RECIPES, descriptions: Mapping[str, str] = DESCRIPTIONS
) -> list[Claim]:
    controls = {"vas": "random_vas"}
    return make_claims(recipes, compared(rows), baseline="baseline", controls=controls, descriptions=descriptions)


def row(
    recipe: str, low: float | None, mean: float, high: float | None, *, against: str = "baseline", target: str = ALL
) -> Difference:
    interval = Interval(mean, low, high, 1 if low is None else 5)
    unknown = "one seed" if low is None else ""
    seeds = () if low is None else (Part(1e-4, 4),)
    contrast = Contrast(mean, interval.count, seeds, (Part(1e-6, 50),), 1e-6, unknown)
    decision = Decision(interval, 0.01, 12) if target == ALL else None
    return Difference(recipe, against, target, "mean_class_accuracy", contrast, decision)


def compared(rows: Sequence[Difference]) -> Comparisons:
    found: Comparisons = {}
    for one in rows:
        found.setdefault((one.recipe, one.against), []).append((one, one))
    return found


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
def test_headlines(vas: tuple[float, ...], das: tuple[float, ...], said: str) -> None:
    claims = claim([*both("vas", *vas), *both("das", *das)])
    assert write_headline(claims, baseline="baseline") == said


@pytest.mark.parametrize(
    ("middles", "said"),
    [
        ((0.0, 0.0, 0.0, 0.0), "None of 4 recipes shows a clear effect"),
        ((0.2, 0.0, 0.2, 0.0), "Mined faces and FixMatch help; no clear effect of 2 others"),
        ((0.0, -0.2, 0.2, 0.0), "FixMatch helps; distilled images hurt; no clear effect of 2 others"),
        ((0.2, -0.2, 0.2, 0.0), "Mined faces and FixMatch help; distilled images hurt; no clear effect of 1 other"),
        ((0.2, 0.2, 0.2, 0.2), "Mined faces, distilled images, FixMatch and other help"),
    ],
)
def test_of_many_recipes_the_headline_names_what_is_claimed(middles: tuple[float, ...], said: str) -> None:
    names = ["vas", "das", "FixMatch", "other"]
    rows = [
        one
        for name, middle in zip(names, middles, strict=True)
        for one in both(name, middle - 0.1, middle, middle + 0.1)
    ]
    assert write_headline(claim(rows, ["baseline", *names]), baseline="baseline") == said


def test_one_seed_never_decides() -> None:
    rows = [*both("vas", None, 0.2, None), *both("das", None, -0.01, None)]
    claims = claim(rows)
    sizes = "Mined faces +20.0 points and distilled images \N{MINUS SIGN}1.0 points"
    assert write_headline(claims, baseline="baseline") == f"One seed only, so no verdict: {sizes} against baseline"
    assert "no interval" in claims[0].detail


def test_claims_name_size_interval_and_control() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), row("vas", 0.004, 0.01, 0.016, against="random_vas")]
    [vas] = claim(rows)
    assert vas.size == "+2.0"
    assert "averaged over 2 test sets" in vas.detail
    assert "+1.0 to +3.0" in vas.detail
    assert vas.control == "Against its control random_vas: +1.0 (+0.4 to +1.6)."


def test_nothing_to_compare_is_said() -> None:
    assert "Nothing to compare" in write_headline(claim([], ["baseline"]), baseline="baseline")


def test_two_recipes_of_one_description_are_named() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), *both("big", -0.01, 0.0, 0.01)]
    claims = claim(rows, ["baseline", "vas", "big"], dict.fromkeys(["vas", "big"], "Mined faces"))
    assert (
        write_headline(claims, baseline="baseline")
        == "Mined faces (vas) help and mined faces (big) show no clear effect"
    )


def test_a_recipe_without_a_description_goes_by_its_name_and_a_control_makes_no_claim() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), *both("FixMatch", -0.01, 0.0, 0.01), *both("random_vas", 0.1, 0.2, 0.3)]
    claims = claim(rows, ["baseline", "vas", "FixMatch", "random_vas"])
    assert write_headline(claims, baseline="baseline") == "Mined faces help and FixMatch shows no clear effect"
    assert claims[1].control == "No control recipe stands beside it."


def test_a_bound_is_neither_claimed_nor_in_the_headline() -> None:
    bound = [one._replace(decision=None) for one in both("true_vas", 0.2, 0.3, 0.4)]
    rows = [*both("vas", -0.01, 0.0, 0.01), *bound]
    claims = claim(rows, ["baseline", "vas", "true_vas"])
    assert write_headline(claims, baseline="baseline") == "Mined faces show no clear effect"
    assert write_rule(compared(rows)).startswith("Claimed: nothing, ")
    assert "the only comparison" in write_rule(compared(rows))


def test_forest_places_by_hand() -> None:
    """Ends -0.02 and 0.04: steps of 0.01, a scale from -0.03 to 0.05, so zero lies at 37.5 %."""
    looks = choose_looks(RECIPES, baseline="baseline", controls={"vas": "random_vas"})
    forest = place_forest([row("vas", -0.02, 0.01, 0.04)], looks)
    assert forest is not None
    [one] = forest.groups[ALL]
    assert [place for place, _, is_zero in forest.ticks if is_zero] == [37.5]
    assert one["dot"] == 50.0
    assert (one["left"], one["width"]) == (12.5, 75.0)
    assert one["text"] == "+1.0 (\N{MINUS SIGN}2.0 to +4.0)"
    assert [text for _, text, _ in forest.ticks][:4] == ["\N{MINUS SIGN}3", "\N{MINUS SIGN}2", "\N{MINUS SIGN}1", "0"]
    assert place_forest([], {}) is None


def test_the_rule_counts_what_decides_and_names_what_is_claimed() -> None:
    rows = [*both("vas", 0.01, 0.02, 0.03), *both("das", -0.01, 0.0, 0.01), *both("random_vas", -0.3, -0.2, -0.1)]
    said = write_rule(compared(rows))
    assert said.startswith("Claimed: vas above baseline and random_vas below baseline, by the rule ")
    assert "one of the 3 comparisons together" in said
    assert write_rule(compared(both("das", -0.01, 0.0, 0.01))).startswith("Claimed: nothing, by the rule ")
    assert write_rule({}) == "Nothing is claimed, since nothing was compared"


def test_seeds_for_a_point_are_a_number_or_the_reason_why_there_is_none() -> None:
    decides = row("vas", -0.01, 0.0, 0.01)
    assert decides.decision is not None
    assert describe_seeds(decides) == "12"
    never = decides._replace(decision=decides.decision._replace(seeds_needed=None))
    assert describe_seeds(never) == "more seeds cannot help: persons limit"
    assert describe_seeds(row("vas", -0.01, 0.0, 0.01, target="t")) == ""
    assert describe_seeds(row("vas", None, 0.0, None)) == ""
