"""Labels and margins of candidates in, a margin per class and the faces that pass it out.

Source: arXiv:2005.08551, eq. 6, read as (best cosine - second best cosine) >= m. Exact ties have margin 0 and never
pass when m > 0. The paper gives no m, so m is also found by a wanted count or a wanted precision. A margin that is
found is greater than 0 and is that of a candidate or a held-out face; given back as a value it keeps the same faces.
The order of the candidates changes nothing.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from fer_pipeline.mining.calibration import Calibration, OutOfReachError
from fer_pipeline.mining.rule import MarginRule

Labels = Int64[np.ndarray, " n"]
Margins = Float32[np.ndarray, " n"]
NOTHING = math.inf  # the margin of a class of which nothing may pass


def passes(labels: Labels, margins: Margins, thresholds: Float64[np.ndarray, " c"]) -> Bool[np.ndarray, " n"]:
    """Eq. 6 with one margin per class."""
    return margins.astype(np.float64) >= thresholds[labels]


def find_thresholds(
    rule: MarginRule, labels: Labels, margins: Margins, *, calibration: Calibration, classes: Sequence[str]
) -> Float64[np.ndarray, " c"]:
    """The margin of every class by the rule; infinite where nothing of a class may pass."""
    values, caps = rule.values(classes), rule.caps(classes)
    if rule.by == "margin":
        return values
    found = np.full(len(classes), NOTHING)
    groups = [np.array([k]) for k in range(len(classes))] if rule.split_by_class else [np.arange(len(classes))]
    missed: list[OutOfReachError] = []
    for group in groups:
        wanted = float(values[group[0]])
        if rule.by == "precision":
            group = group[calibration.covered[group]]  # no evidence, no promise: such a class keeps nothing
        members = np.isin(labels, group)
        if not members.any():
            continue
        if rule.by == "count":
            found[group] = margin_for_count(labels[members], margins[members], wanted=int(wanted), caps=caps)
            continue
        try:
            present = margins[members]
            found[group] = calibration.margin_for_precision(wanted, group=group, present=present, bound=rule.bound)
        except OutOfReachError as error:
            missed.append(error)
    if missed and not np.isfinite(found).any():
        raise missed[0]
    return found


def margin_for_count(labels: Labels, margins: Margins, *, wanted: int, caps: Int64[np.ndarray, " c"]) -> float:
    """The largest margin that keeps `wanted` faces, caps counted in.

    Faces of equal margin stand or fall together: where a tie crosses the wanted count, the whole tie is left out, so
    that never more than wanted is kept. Where fewer have a margin above 0, all of those pass.
    """
    order = np.argsort(-margins, kind="stable")
    order = order[margins[order] > 0]
    sorted_margins, sorted_labels = margins[order], labels[order]
    kept = np.cumsum(ordinals(sorted_labels) < caps[sorted_labels])
    last_of_tie = np.flatnonzero(np.diff(sorted_margins, append=np.float32(-1)))
    fitting = kept[last_of_tie] <= wanted
    if not fitting.any():
        return NOTHING
    most = kept[last_of_tie][fitting].max()
    strictest = last_of_tie[np.searchsorted(kept[last_of_tie], most)]
    return float(sorted_margins[strictest])


def ordinals(labels: Labels) -> Labels:
    """How many earlier entries of the same class each entry has."""
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    starts = np.searchsorted(grouped, grouped)  # where each entry's class begins
    result = np.empty(len(labels), np.int64)
    result[order] = np.arange(len(labels)) - starts
    return result


def first_of_class(
    labels: Labels, best: Margins, identifiers: Sequence[str], *, caps: Int64[np.ndarray, " c"]
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """The entries in order of class and rank, cut off at each class's cap, and their ranks from 1.

    Ranks follow the distance to the centroid, 1 - cos, nearest first (fig. 3 of the paper); ties follow the identifier.
    """
    names = np.asarray(identifiers, dtype=object)
    order = np.argsort(names, kind="stable") if len(names) else np.zeros(0, np.int64)
    order = order[np.argsort(-best[order], kind="stable")]
    order = order[np.argsort(labels[order], kind="stable")]
    ranks = ordinals(labels[order]) + 1
    inside = ranks <= caps[labels[order]]
    return order[inside].astype(np.int64), ranks[inside]
