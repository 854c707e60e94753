"""The margin rule against hand-sized truths, a brute force over all margins, and the properties that define it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import RULES, Rule, validate
from fer_pipeline.mining.calibration import Calibration, CalibrationSettings, calibrate
from fer_pipeline.mining.margin import (
    NO_CAP,
    MarginRule,
    divide_total,
    find_thresholds,
    first_of_class,
    ordinals,
    passes,
    threshold_for_count,
)

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

CLASSES = ("anger", "fear", "neutral")
NO_CAPS = np.full(3, NO_CAP)


def no_evidence() -> Calibration:
    labels, margins = np.zeros(0, np.int64), np.zeros(0, np.float32)
    nobody, settings = Ranking(labels, margins), CalibrationSettings(support=1, level=0.95)
    return calibrate(nobody, labels, nobody, settings, shares=None, num_classes=3)


def thresholds(rule: MarginRule, labels: np.ndarray, margins: np.ndarray) -> np.ndarray:
    values, caps = rule.values(CLASSES, np.array([6, 3, 1])), rule.caps(CLASSES)
    return find_thresholds(rule, Ranking(labels, margins), values=values, caps=caps, calibration=no_evidence())


pools = st.integers(1, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 2)),
        arrays(np.float32, n, elements=st.sampled_from([0.0, 0.1, 0.125, 0.2, 0.3, 0.5, 0.75, 1.0])),
    )
)


def test_eq_6_by_hand() -> None:
    margins = np.array([0.0, 0.25, 0.2499, 1.0], np.float32)
    labels = np.array([0, 1, 1, 2])
    np.testing.assert_array_equal(passes(labels, margins, np.full(3, 0.25)), [False, True, False, True])
    np.testing.assert_array_equal(passes(labels, margins, np.array([0, np.inf, 2])), [True, False, False, False])


@given(pools, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_margin_keeps_a_subset_and_ties_never_pass(pool, one: float, other: float) -> None:
    labels, margins = pool
    few, many = (passes(labels, margins, np.full(3, m)) for m in (max(one, other), min(one, other)))
    assert not (few & ~many).any()
    assert not passes(labels, margins, np.full(3, 1e-12))[margins == 0].any()


@given(pools, st.integers(1, 70))
def test_count_rule_equals_brute_force(pool, wanted: int) -> None:
    """Of all margins present and above 0, the one that keeps most without exceeding `wanted`."""
    labels, margins = pool
    found = threshold_for_count(labels, margins, wanted=wanted, caps=NO_CAPS)
    kept = int((margins >= found).sum())
    offers = [int((margins >= m).sum()) for m in np.unique(margins[margins > 0])]
    assert kept == max([count for count in offers if count <= wanted], default=0)
    assert found == np.inf or np.float32(found) in margins


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_count_rule_is_exact_without_ties(number: int, wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    margins = rng.permutation(np.arange(1, number + 1, dtype=np.float32) / 64)
    labels = rng.integers(0, 3, number)
    kept = passes(labels, margins, thresholds(MarginRule(by="count", value=wanted), labels, margins)).sum()
    assert kept == min(wanted, number)


@given(pools, st.integers(1, 30), st.tuples(*[st.integers(1, 6)] * 3))
def test_count_rule_counts_what_the_caps_leave(pool, wanted: int, caps: tuple[int, int, int]) -> None:
    labels, margins = pool
    found = threshold_for_count(labels, margins, wanted=wanted, caps=np.array(caps))

    def kept(m: float) -> int:
        return sum(min(caps[k], int(((margins >= m) & (labels == k)).sum())) for k in range(3))

    assert kept(found) == max([kept(m) for m in np.unique(margins[margins > 0]) if kept(m) <= wanted], default=0)


@given(pools, st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=50)
def test_order_of_shards_does_not_matter(pool, wanted: int, seed: int, per_class: bool) -> None:
    labels, margins = pool
    order = np.random.default_rng(seed).permutation(len(labels))
    rule = MarginRule(by="count", value=wanted, per_class=per_class)
    np.testing.assert_array_equal(thresholds(rule, labels, margins), thresholds(rule, labels[order], margins[order]))


@given(pools, st.integers(1, 20))
def test_a_found_margin_given_back_as_a_value_keeps_the_same(pool, wanted: int) -> None:
    labels, margins = pool
    found = thresholds(MarginRule(by="count", value=wanted), labels, margins)
    if np.isfinite(found[0]):
        again = thresholds(MarginRule(by="margin", value=float(found[0])), labels, margins)
        np.testing.assert_array_equal(passes(labels, margins, found), passes(labels, margins, again))


def test_balanced_subset_takes_as_many_of_every_class() -> None:
    rng = np.random.default_rng(0)
    labels, margins = rng.choice(3, 300, p=[0.8, 0.15, 0.05]), rng.permutation(300).astype(np.float32) / 512 + 0.01
    labels, margins = labels.astype(np.int64), margins.astype(np.float32)
    found = thresholds(MarginRule(by="count", value=10, per_class=True), labels, margins)
    kept = passes(labels, margins, found)
    assert np.bincount(labels[kept]).tolist() == [10, 10, 10]
    for k in range(3):
        assert margins[kept & (labels == k)].min() > margins[~kept & (labels == k)].max()


@pytest.mark.parametrize(
    ("shares", "expected"),
    [("anchor", [24, 12, 4]), ({"anger": 0.0, "fear": 0.5, "neutral": 0.5}, [0, 20, 20])],
)
def test_quotas_by_shares_of_the_anchor_or_given(shares, expected: list[int]) -> None:
    """The anchor has 6, 3 and 1 of ten faces; the pool has as many as wanted of every class, and more."""
    rng = np.random.default_rng(1)
    labels, margins = np.repeat(np.arange(3), 50), rng.permutation(150).astype(np.float32) / 256 + 0.01
    found = thresholds(MarginRule(by="count", value=40, shares=shares), labels, margins)
    assert np.bincount(labels[passes(labels, margins, found)], minlength=3).tolist() == expected


@given(st.integers(1, 1000), st.lists(st.floats(0.01, 1), min_size=1, max_size=8))
def test_a_divided_total_is_whole_and_within_one_face_of_the_shares(total: int, shares: list[float]) -> None:
    weights = np.array(shares)
    parts = divide_total(total, weights)
    assert parts.sum() == total
    assert (np.abs(parts - total * weights / weights.sum()) < 1).all()


@pytest.mark.parametrize("by", RULES)
def test_a_rule_is_named_by_its_threshold_or_beside_a_count(by: Rule) -> None:
    assert MarginRule(by=by, value=0.5).ranked_by == by
    assert MarginRule(by="count", value=5, rule=by).ranked_by == by
    assert MarginRule(by="precision", value=0.5, rule=by).ranked_by == by
    assert MarginRule(by="count", value=5).ranked_by == "margin"


def test_a_value_for_each_class() -> None:
    labels, margins = np.array([0, 1, 2, 0]), np.array([0.3, 0.3, 0.3, 0.6], np.float32)
    rule = MarginRule(value={"anger": 0.5, "fear": 0.1, "neutral": 0.9})
    assert passes(labels, margins, thresholds(rule, labels, margins)).tolist() == [False, True, False, True]


def test_ranks_follow_the_cosine_and_then_the_identifier() -> None:
    labels = np.array([1, 0, 1, 1, 0])
    best = np.array([0.5, 0.9, 0.7, 0.5, 0.95], np.float32)
    order, ranks = first_of_class(labels, best, ["d", "b", "c", "a", "e"], caps=NO_CAPS)
    assert order.tolist() == [4, 1, 2, 3, 0]
    assert ranks.tolist() == [1, 2, 1, 2, 3]
    order, ranks = first_of_class(labels, best, ["d", "b", "c", "a", "e"], caps=np.array([1, 2, 9]))
    assert order.tolist() == [4, 2, 3]
    assert ranks.tolist() == [1, 1, 2]


@given(arrays(np.int64, st.integers(0, 40), elements=st.integers(0, 3)))
def test_ordinals_count_earlier_entries(labels: np.ndarray) -> None:
    assert ordinals(labels).tolist() == [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"value": -0.1}, "greater than or equal to 0"),
        ({"value": 3}, "cannot exceed 2"),
        ({"by": "count", "value": 2.5}, "whole"),
        ({"by": "count", "value": 0}, "at least 1"),
        ({"by": "precision", "value": 1.5}, "precision"),
        ({"by": "luck"}, "margin"),
        ({"by": "probability", "value": 1.5}, "probability and cannot exceed 1"),
        ({"by": "probability_margin", "rule": "margin", "value": 0.5}, "leave rule out"),
        ({"value": 0.2, "shares": "anchor"}, "wants by: count"),
        ({"by": "count", "value": {"anger": 3}, "shares": "anchor"}, "a single value"),
        ({"by": "count", "value": 30, "per_class": True, "shares": "anchor"}, "no per_class"),
        ({"by": "count", "value": 30, "shares": {"anger": 0.5, "fear": 0.4}}, "add up to 0.9, expected 1"),
        ({"margin": 0.1}, "known keys"),
    ],
)
def test_impossible_rules_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(MarginRule, values, where="params.yaml, mine")


def test_mappings_must_name_the_classes() -> None:
    with pytest.raises(ConfigError, match="missing \\['neutral'\\], unknown \\['joy'\\]"):
        MarginRule(value={"anger": 0.1, "fear": 0.1, "joy": 0.1}).values(CLASSES)
    with pytest.raises(ConfigError, match="joy"):
        MarginRule(cap={"joy": 5}).caps(CLASSES)
    with pytest.raises(ConfigError, match=r"mine\.shares must name every class once: missing \['neutral'\]"):
        MarginRule(by="count", value=3, shares={"anger": 0.5, "fear": 0.5}).values(CLASSES)
    assert MarginRule(cap={"fear": 5}).caps(CLASSES).tolist() == [NO_CAP, 5, NO_CAP]
