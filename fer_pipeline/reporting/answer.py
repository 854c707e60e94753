"""Differences in, the first screen's words out: does mined or distilled data help here, by how much, how sure.

The rule is fixed beforehand and the same for every outcome: the mean class accuracy, averaged over the targets, of the
recipe minus the baseline's, paired over the seeds. The whole 95 % interval above zero says "helps", below zero
"hurts", anything else "no clear effect"; one seed can never decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.numbers import listing, plural, points, span
from fer_pipeline.reporting.results import ALL, CONTROL_OF, Difference

METRIC = "mean_class_accuracy"
KIND = {
    "mined": "Mined faces",
    "distilled": "Distilled images",
    "random": "Random pool faces",
    "random_real": "A few mined faces",
    "labelled": "Labelled faces alone",
}
VERDICT = {"above": "help", "below": "hurt", "unclear": "show no clear effect"}


@dataclass(frozen=True)
class Claim:
    """What one recipe does to the baseline, in words and figures."""

    recipe: str
    kind: str
    verdict: Literal["above", "below", "unclear"]
    sentence: str
    size: str
    detail: str
    targets: tuple[Difference, ...]
    overall: Difference
    control: str


def claims(world: ProjectSettings, comparisons: Sequence[Difference], *, baseline: str) -> list[Claim]:
    """One claim for every recipe with mined or distilled data, in the order of the settings."""
    found = []
    for recipe, settings in world.recipes.items():
        rows = _rows(comparisons, recipe, baseline)
        if settings.use in CONTROL_OF and rows:
            found.append(_claim(world, comparisons, recipe, rows))
    return found


def headline(found: Sequence[Claim], *, baseline: str) -> str:
    """The answer in one sentence."""
    if not found:
        return "Nothing to compare yet: no recipe with mined or distilled data stands beside the baseline"
    if all(claim.overall.over_seeds.low is None for claim in found):
        parts = [f"{_named(claim, found)} {points(claim.overall.over_seeds.mean)} points" for claim in found]
        return f"One seed only, so no verdict: {listing(parts)} against {baseline}"
    parts = [f"{_named(claim, found)} {VERDICT[claim.verdict]}" for claim in found]
    return (
        " and ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])])
        if len(parts) < 3
        else listing(parts)
    )


def _named(claim: Claim, found: Sequence[Claim]) -> str:
    alone = sum(other.kind == claim.kind for other in found) == 1
    return claim.kind if alone else f"{claim.kind} ({claim.recipe})"


def _claim(world: ProjectSettings, comparisons: Sequence[Difference], recipe: str, rows: list[Difference]) -> Claim:
    overall = next((row for row in rows if row.target == ALL), rows[-1])
    single = [row for row in rows if row.target != ALL]
    interval = overall.over_seeds
    where = f"averaged over {plural(len(single), 'test set')}" if len(single) > 1 else f"on {single[0].target}"
    sure = (
        f"95\N{NO-BREAK SPACE}% interval over {plural(interval.count, 'seed')}: {span(interval, signed=True)}"
        if interval.low is not None
        else "one seed: no interval"
    )
    return Claim(
        recipe=recipe,
        kind=KIND[world.recipes[recipe].use],
        verdict=interval.verdict,
        sentence=f"{KIND[world.recipes[recipe].use]} {VERDICT[interval.verdict]}",
        size=points(interval.mean),
        detail=f"points of mean class accuracy, {where}; {sure}",
        targets=tuple(single),
        overall=overall,
        control=_control(world, comparisons, recipe),
    )


def _control(world: ProjectSettings, comparisons: Sequence[Difference], recipe: str) -> str:
    wanted = CONTROL_OF[world.recipes[recipe].use]
    said = []
    for name, settings in world.recipes.items():
        rows = _rows(comparisons, recipe, name) if settings.use == wanted else []
        if rows:
            interval: Interval = next((row for row in rows if row.target == ALL), rows[-1]).over_seeds
            ends = f" ({span(interval, signed=True)})" if interval.low is not None else ""
            said.append(f"Against its control {name}: {points(interval.mean)}{ends}.")
    return " ".join(said) or "No control recipe stands beside it."


def _rows(comparisons: Sequence[Difference], recipe: str, against: str) -> list[Difference]:
    return [row for row in comparisons if (row.recipe, row.against, row.metric) == (recipe, against, METRIC)]
