"""Find a threshold for each class by the rule in the settings, and the candidates that pass it.

Three rules choose faces. `margin`: arXiv:2005.08551, eq. 6, read as (best cosine - second best cosine) >= m. Exact ties
have margin 0 and never pass when m > 0. `probability` and `probability_margin` are its controls: the largest soft-max
probability of the primitive learner, and that minus the second largest; the face's class is then the likeliest one.
The paper gives no m, so a threshold is also found by a wanted count or a wanted precision. One that is found is greater
than 0 and is the value of a candidate or of a held-out face; given back as a value it selects the same faces. The order
of the candidates changes nothing.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from pydantic import Field, model_validator

from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import RULES, Rule, Settings
from fer_pipeline.mining.calibration import Calibration, Labels, OutOfReachError, Values

NO_CAP = np.iinfo(np.int64).max
LARGEST = {"margin": 2.0, "probability": 1.0, "probability_margin": 1.0}  # cosines lie between -1 and 1
NOTHING = math.inf  # the threshold of a class of which nothing may pass
TOTAL_SHARE_TOLERANCE = 1e-6

Amount = Annotated[float, Field(ge=0)]
Cap = Annotated[int, Field(ge=1)]
Caps = Int64[np.ndarray, " c"]


class MarginRule(Settings):
    """By which rule faces are chosen, how its threshold is found, and how many faces a class may have.

    `by: margin | probability | probability_margin` takes `value` as the threshold of that rule itself, `by: count` as a
    wanted number of faces, `by: precision` as a wanted precision on held-out anchor faces; the last two choose by
    `rule`, the cosine margin unless it is named. A mapping of class to value, or `per_class: true`, gives every class a
    threshold of its own (`by: count` with `per_class: true` is a balanced subset); otherwise one serves all. With
    `by: count`, `shares` divides one total `value` among the classes: as the anchor's faces are, or as given.
    """

    by: Literal["margin", "probability", "probability_margin", "count", "precision"] = "margin"
    value: Amount | dict[str, Amount] = 0.1
    rule: Rule | None = None  # what by: count and by: precision choose by; null: margin
    per_class: bool = False
    shares: Literal["anchor"] | dict[str, Amount] | None = None  # of a total count; they add up to 1
    cap: Cap | dict[str, Cap] | None = None  # faces a class may have, best first; a class not named has no cap
    bound: Literal["estimate", "lower"] = "estimate"  # of `by: precision`: what must reach the value

    @model_validator(mode="after")
    def _values_make_sense(self) -> "MarginRule":
        if self.rule is not None and self.by in RULES and self.by != self.rule:
            raise ValueError(f"by: {self.by} is a rule, and rule: {self.rule} another; leave rule out")
        for value in self.value.values() if isinstance(self.value, dict) else [self.value]:
            if self.by == "margin" and value > LARGEST[self.by]:
                raise ValueError(f"value is a margin between cosines and cannot exceed 2, found {value}")
            if self.by in RULES and value > LARGEST[self.by]:
                raise ValueError(f"value is a probability with by: {self.by} and cannot exceed 1, found {value}")
            if self.by == "count" and (value < 1 or value != int(value)):
                raise ValueError(
                    f"value is a number of faces with by: count and must be whole and at least 1, found {value}"
                )
            if self.by == "precision" and not 0 < value <= 1:
                raise ValueError(f"value is a precision with by: precision and must lie in (0, 1], found {value}")
        if self.shares is not None and (self.by != "count" or self.per_class or isinstance(self.value, dict)):
            raise ValueError("shares divides a total; it wants by: count, a single value and no per_class")
        if isinstance(self.shares, dict) and abs(sum(self.shares.values()) - 1) > TOTAL_SHARE_TOLERANCE:
            raise ValueError(f"shares add up to {sum(self.shares.values()):g}, expected 1")
        return self

    @property
    def ranked_by(self) -> Rule:
        """The rule that chooses."""
        if self.by == "count" or self.by == "precision":
            return self.rule or "margin"
        return self.by

    @property
    def split_by_class(self) -> bool:
        """Whether each class has a threshold of its own."""
        return self.per_class or isinstance(self.value, dict) or self.shares is not None

    def values(
        self, classes: Sequence[str], anchor: Int64[np.ndarray, " c"] | None = None
    ) -> Float64[np.ndarray, " c"]:
        """Returns the value of every class; a mapping must name them all. `anchor` counts the anchor's faces."""
        if self.shares is not None and not isinstance(self.value, dict):
            if isinstance(self.shares, dict):
                shares = self._of_every_class(self.shares, classes, "shares")
            else:
                assert anchor is not None, "shares of an anchor that is not counted"
                shares = anchor / anchor.sum()
            return divide_total(int(self.value), shares)
        if not isinstance(self.value, dict):
            return np.full(len(classes), float(self.value))
        return self._of_every_class(self.value, classes, "value")

    @staticmethod
    def _of_every_class(mapping: dict[str, float], classes: Sequence[str], name: str) -> Float64[np.ndarray, " c"]:
        missing, unknown = sorted(set(classes) - set(mapping)), sorted(set(mapping) - set(classes))
        if missing or unknown:
            raise ConfigError(
                f"mine.{name} must name every class once: missing {missing or 'none'}, unknown {unknown or 'none'}; "
                f"the classes are {', '.join(classes)}"
            )
        return np.array([mapping[name] for name in classes], np.float64)

    def caps(self, classes: Sequence[str]) -> Caps:
        """Returns the cap of every class, `NO_CAP` where there is none."""
        if not isinstance(self.cap, dict):
            return np.full(len(classes), self.cap or NO_CAP, np.int64)
        if unknown := sorted(set(self.cap) - set(classes)):
            raise ConfigError(f"mine.cap names {', '.join(unknown)}; the classes are {', '.join(classes)}")
        return np.array([self.cap.get(name, NO_CAP) for name in classes], np.int64)


def divide_total(total: int, shares: Float64[np.ndarray, " c"]) -> Float64[np.ndarray, " c"]:
    """Divides a number of faces by shares, in whole faces that add up to it: largest remainders first, then first."""
    exact = total * shares / shares.sum()
    whole = np.floor(exact)
    left = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:left]] += 1
    return whole


def passes(labels: Labels, values: Values, thresholds: Float64[np.ndarray, " c"]) -> Bool[np.ndarray, " n"]:
    """Applies eq. 6 with one threshold per class."""
    return values.astype(np.float64) >= thresholds[labels]


def find_thresholds(
    rule: MarginRule,
    candidates: Ranking,
    *,
    values: Float64[np.ndarray, " c"],
    caps: Caps,
    calibration: Calibration,
) -> Float64[np.ndarray, " c"]:
    """Finds the threshold of every class by the rule; infinite where nothing of a class may pass.

    `values` are the rule's for each class: thresholds, counts or precisions.
    """
    labels, scores = candidates.label, candidates.value
    if rule.by in RULES:
        return values
    thresholds = np.full(len(values), NOTHING)
    everyone = np.arange(len(values))
    errors: list[OutOfReachError] = []
    for group in everyone[:, None] if rule.split_by_class else [everyone]:
        wanted = float(values[group[0]])
        if rule.by == "precision":
            group = group[calibration.evident[group]]  # no evidence, no promise: nothing of such a class is mined
        members = np.isin(labels, group)
        if not members.any():
            continue
        if rule.by == "count":
            thresholds[group] = threshold_for_count(labels[members], scores[members], wanted=int(wanted), caps=caps)
            continue
        try:
            thresholds[group] = calibration.threshold_for_precision(
                wanted, group=group, present=scores[members], bound=rule.bound
            )
        except OutOfReachError as error:
            errors.append(error)
    if errors and not np.isfinite(thresholds).any():
        raise errors[0]
    return thresholds


def threshold_for_count(labels: Labels, values: Values, *, wanted: int, caps: Caps) -> float:
    """Finds the smallest threshold that selects `wanted` faces, caps counted in.

    Faces of equal value stand or fall together: where a tie crosses the wanted count, the whole tie is left out, so
    that never more than wanted are selected. Where fewer have a value above 0, all of those pass.
    """
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > 0]
    sorted_values, sorted_labels = values[order], labels[order]
    ends_tie = np.diff(sorted_values, append=np.float32(-1)) != 0
    offers = sorted_values[ends_tie]
    selected = np.cumsum(ordinals(sorted_labels) < caps[sorted_labels])[ends_tie]
    if not len(offers) or selected[0] > wanted:
        return NOTHING
    most = selected[selected <= wanted].max()
    return float(offers[np.searchsorted(selected, most)])


def ordinals(labels: Labels) -> Labels:
    """Counts the earlier entries of the same class for each entry."""
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    result = np.empty(len(labels), np.int64)
    result[order] = np.arange(len(labels)) - np.searchsorted(grouped, grouped)  # less where its class begins
    return result


def first_of_class(
    labels: Labels, best: Values, identifiers: Sequence[str], *, caps: Caps
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Returns the entries in order of class and rank, cut off at each class's cap, and their ranks from 1.

    Ranks follow `best`, largest first: by the margin rule the cosine, so that the nearest to the centroid comes first
    (1 - cos, fig. 3 of the paper), by the others their own value. Ties follow the identifier.
    """
    order = np.lexsort((np.asarray(identifiers, dtype=object), -best, labels))
    ranks = ordinals(labels[order]) + 1
    inside = ranks <= caps[labels[order]]
    return order[inside], ranks[inside]
