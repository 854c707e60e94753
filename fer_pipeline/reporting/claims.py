"""Say first which recipes are claimed to help, by how much and how surely, and place the forest plot.

The rule is fixed beforehand and the same for every outcome: the mean class accuracy, averaged over the targets, of the
recipe minus the baseline's. The whole interval over seeds and persons, corrected for the number of comparisons, above
zero says "helps", below zero "hurts", anything else "no clear effect"; one seed can never decide.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.charts import Look
from fer_pipeline.reporting.formatting import listing, plural, points, span
from fer_pipeline.reporting.results import ALL, Comparisons, Difference

EFFECTS = {"above": ("help", "helps"), "below": ("hurt", "hurts"), "unclear": ("show", "shows")}
FEW = 3  # claims, of which the headline says each
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Claim(NamedTuple):
    """What one recipe does to the baseline, in words and figures."""

    recipe: str
    subject: str  # what the recipe adds, or its name
    effect: str
    size: str
    detail: str
    control: str
    interval: Interval  # corrected

    @property
    def sentence(self) -> str:
        """`Mined faces help`."""
        return f"{self.subject} {self.effect}"


def make_claims(
    recipes: Sequence[str],
    comparisons: Comparisons,
    *,
    baseline: str,
    controls: Mapping[str, str],
    descriptions: Mapping[str, str],
) -> list[Claim]:
    """Make one claim for each recipe that is no control and whose difference from the baseline decides, in their order.

    `controls` names the control of a recipe, `descriptions` what a recipe adds, in the plural ("Mined faces").
    """
    claims = []
    for recipe in recipes:
        rows = [row for row, *_ in comparisons.get((recipe, baseline), ())]
        if not rows or rows[-1].decision is None or recipe in controls.values():
            continue
        subject, deciding = descriptions.get(recipe, recipe), rows[-1]  # of the mean over several targets
        interval = deciding.interval
        effect = EFFECTS[interval.direction][subject == recipe]
        targets = [row.target for row in rows if row.target != ALL]
        where = f"averaged over {plural(len(targets), 'test set')}" if len(targets) > 1 else f"on {targets[0]}"
        doubt = f"{deciding.contrast.unknown}: no interval"
        if interval.low is not None:
            seeds = f"{plural(interval.count, 'seed')} and " if interval.count else ""
            doubt = f"corrected interval over {seeds}persons: {span(interval, signed=True)}"
        control = "No control recipe stands beside it."
        if against_control := comparisons.get((recipe, controls.get(recipe, ""))):
            control = f"Against its control {controls[recipe]}: {_with_span(against_control[-1][0].interval)}."
        effect = f"{effect} no clear effect" if interval.direction == "unclear" else effect
        detail = f"points of mean class accuracy, {where}; {doubt}"
        claims.append(Claim(recipe, subject, effect, points(interval.mean), detail, control, interval))
    return claims


def write_headline(claims: Sequence[Claim], *, baseline: str) -> str:
    """Write the answer in one sentence."""
    if not claims:
        return "Nothing to compare yet: no recipe stands beside the baseline"
    short = len(claims) > FEW
    if short:  # what helps, what hurts, and the others
        claims = sorted(claims, key=lambda claim: ("above", "below", "unclear").index(claim.interval.direction))
    subjects = [claim.subject for claim in claims]
    names = [f"{one.subject} ({one.recipe})" if subjects.count(one.subject) > 1 else one.subject for one in claims]
    for place, claim in enumerate(claims):
        # The name of a recipe, or of a method ("FixMatch labels"), keeps its first letter.
        if place and claim.subject != claim.recipe and names[place].split()[0][1:].islower():
            names[place] = names[place][0].lower() + names[place][1:]
    if all(claim.interval.low is None for claim in claims):
        sizes = [f"{name} {claim.size} points" for name, claim in zip(names, claims, strict=True)]
        lack = "One seed only" if all(claim.interval.count == 1 for claim in claims) else "No interval"
        said = f" on {len(claims)} recipes" if short else f": {listing(sizes)}"
        return f"{lack}, so no verdict{said} against {baseline}"
    if short:
        return _write_short(names, claims)
    return listing([f"{name} {claim.effect}" for name, claim in zip(names, claims, strict=True)])


def _write_short(names: Sequence[str], claims: Sequence[Claim]) -> str:
    """Name what helps and what hurts, and count the others."""
    parts, others = [], sum(claim.interval.direction == "unclear" for claim in claims)
    for direction in ("above", "below"):
        some = {name: claim for name, claim in zip(names, claims, strict=True) if claim.interval.direction == direction}
        if some:
            effect = EFFECTS[direction][0] if len(some) > 1 else next(iter(some.values())).effect
            parts.append(f"{listing([*some])} {effect}")
    if not parts:
        return f"None of {others} recipes shows a clear effect"
    return "; ".join([*parts, *([f"no clear effect of {plural(others, 'other')}"] if others else [])])


def write_rule(comparisons: Comparisons) -> str:
    """Write which of the differences that decide are claimed and by which rule, in one sentence."""
    deciding = [rows[-1][0] for rows in comparisons.values() if rows[-1][0].decision]
    claimed = [f"{row.recipe} {row.interval.direction} {row.against}" for row in deciding if _is_claimed(row)]
    if not deciding:
        return "Nothing is claimed, since nothing was compared"
    number = "the only comparison" if len(deciding) == 1 else f"one of the {len(deciding)} comparisons together"
    return (
        f"Claimed: {listing(claimed) or 'nothing'}, by the rule that a difference in mean class accuracy counts where "
        f"its interval over seeds and persons leaves out zero, corrected by Holm's procedure so that {number} is "
        "claimed with a chance of at most 5\N{NO-BREAK SPACE}% where no recipe differs"
    )


def describe_seeds(row: Difference) -> str:
    """Say how many seeds a difference of one point would need; nothing where the row does not decide."""
    if row.decision is None or row.contrast.unknown:
        return ""
    if row.decision.seeds_needed is None:
        return "more seeds cannot help: persons limit" if row.contrast.seeds else "persons limit"
    return f"{row.decision.seeds_needed}" if row.contrast.seeds else "none is trained"


def _is_claimed(row: Difference) -> bool:
    return row.interval.direction != "unclear"


def _with_span(interval: Interval) -> str:
    return points(interval.mean) + (f" ({span(interval, signed=True)})" if interval.low is not None else "")


class Forest(NamedTuple):
    """A forest plot: rows by target, the mean over all targets first, and (place, text, is zero) of the scale's ticks.

    Places are in percent of the plot's width. A row has `recipe`, `colour`, `dot`, `left` and `width` of its interval,
    `has_interval`, `text` and `description`. The plot is HTML and CSS and no picture, so that its words keep their size
    on a phone.
    """

    groups: dict[str, list[dict[str, Any]]]
    ticks: list[tuple[float, str, bool]]


def place_forest(differences: Sequence[Difference], looks: Mapping[str, Look]) -> Forest | None:
    """Place the plot of some differences on a scale with round numbers; None where there are none."""
    if not differences:
        return None
    ends = [value for row in differences for value in _ends(row.interval)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = next((step for step in STEPS if (high - low) / step <= 6), STEPS[-1])
    low, high = math.floor(low / step - 0.2) * step, math.ceil(high / step + 0.2) * step

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(differences, key=lambda row: row.target != ALL):
        interval, text = row.interval, _with_span(row.interval)
        left, right = place(min(_ends(interval))), place(max(_ends(interval)))
        position = {"dot": place(interval.mean), "left": left, "width": round(right - left, 2)}
        words = {"text": text, "description": f"{row.recipe} minus {row.against} on {row.target}: {text} points"}
        look = {"recipe": row.recipe, "colour": looks[row.recipe].colour, "has_interval": interval.low is not None}
        groups.setdefault(row.target, []).append(look | position | words)
    values = [low + index * step for index in range(round((high - low) / step) + 1)]
    digits = 0 if step >= 0.01 else 1
    return Forest(groups, [(place(value), points(value, digits), abs(value) < step / 2) for value in values])


def _ends(interval: Interval) -> list[float]:
    return [value for value in (interval.low, interval.mean, interval.high) if value is not None]
