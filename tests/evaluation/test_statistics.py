"""Intervals against closed forms, scipy, and a plain resampling loop."""

import numpy as np
import pytest
from scipy import stats

from fer_pipeline.evaluation.metrics import METRICS, all_metrics, confusion_matrix
from fer_pipeline.evaluation.statistics import (
    Interval,
    bootstrap,
    mean_interval,
    percentile_interval,
    replicate_weights,
    share_interval,
)


def test_t_interval_against_scipy() -> None:
    values = [0.61, 0.64, 0.66, 0.59, 0.63]
    found = mean_interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(0.626)
    assert found.half_width == pytest.approx((high - low) / 2)


def test_interval_of_differences_is_scipys_paired_test() -> None:
    first, second = [0.7, 0.72, 0.69, 0.75], [0.66, 0.7, 0.68, 0.7]
    found = mean_interval(np.subtract(first, second).tolist())
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.5]) == Interval(0.5, None, None, 1)
    assert mean_interval([0.5]).half_width is None
    assert mean_interval([0.5]).direction == "unclear"


@pytest.mark.parametrize(
    ("low", "high", "direction"),
    [(0.1, 0.2, "above"), (-0.2, -0.1, "below"), (-0.1, 0.1, "unclear"), (0.0, 0.1, "unclear")],
)
def test_directions(low: float, high: float, direction: str) -> None:
    assert Interval(0.0, low, high, 5).direction == direction


def test_bootstrap_interval_is_the_binomial_one() -> None:
    """With one class, accuracy is a binomial share: the percentile interval must lie on its quantiles."""
    hits, count = 160, 200
    predicted = np.where(np.arange(count) < hits, 0, 1)[None]
    replicates = bootstrap(np.zeros(count, int), predicted, num_classes=2, draws=20_000)
    found = percentile_interval(replicates.metrics[:, 0], estimate=hits / count, count=count)
    low, high = stats.binom.ppf([0.025, 0.975], count, hits / count) / count
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert replicates.metrics[:, 0].std() == pytest.approx(np.sqrt(0.8 * 0.2 / count), rel=0.03)


def test_bootstrap_spread_of_the_class_mean_is_the_stratified_one() -> None:
    """Var = mean of p(1-p)/n over classes, divided by the number of classes again."""
    sizes, shares = (40, 100, 20), (0.5, 0.9, 0.25)
    labels = np.repeat(np.arange(3), sizes)
    predicted = np.concatenate(
        [np.where(np.arange(n) < p * n, k, (k + 1) % 3) for k, (n, p) in enumerate(zip(sizes, shares, strict=True))]
    )
    replicates = bootstrap(labels, predicted[None], num_classes=3, draws=20_000)
    variance = sum(p * (1 - p) / n for n, p in zip(sizes, shares, strict=True)) / 9
    assert replicates.metrics[:, 1].std() == pytest.approx(np.sqrt(variance), rel=0.03)
    assert replicates.metrics[:, 1].mean() == pytest.approx(0.55, abs=0.005)


def test_weights_keep_every_class_size_or_draw_whole_subjects() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    weights, unit = replicate_weights(labels, subjects=None, draws=50, seed=3)
    assert unit.tolist() == list(range(6))
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 5] == 1).all()
    weights, unit = replicate_weights(labels, subjects=["x", "y", "x", "", "", "y"], draws=50, seed=3)
    assert weights.shape == (50, 4)
    assert unit[0] == unit[2]
    assert unit[3] != unit[4]  # a face without a subject stands for itself
    assert (weights.sum(1) == 4).all()


def test_against_a_plain_loop_over_drawn_samples() -> None:
    """Each replicate's figures equal those of the sample drawn out in full, for both kinds of units and two seeds."""
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, (2, 60))
    for subjects in (None, [f"s{i % 11}" for i in range(60)]):
        found = bootstrap(labels, predicted, num_classes=3, subjects=subjects, draws=8, seed=5)
        weights, unit = replicate_weights(labels, subjects=subjects, draws=8, seed=5)
        for index, weight in enumerate(weights):
            drawn = np.repeat(np.arange(60), weight[unit])
            per_seed = [all_metrics(confusion_matrix(labels[drawn], row[drawn], num_classes=3)) for row in predicted]
            np.testing.assert_allclose(found.metrics[index], np.mean(per_seed, 0))


def test_clusters_widen_the_interval_where_faces_of_a_person_agree() -> None:
    """Ten copies of each person: the honest spread is that of the persons, sqrt(10) times that of the faces."""
    rng = np.random.default_rng(0)
    hit = np.repeat(rng.random(40) < 0.5, 10)
    labels = np.zeros(400, int)
    predicted = np.where(hit, 0, 1)[None]
    faces = bootstrap(labels, predicted, num_classes=2, draws=4000).metrics[:, 0].std()
    persons = bootstrap(labels, predicted, num_classes=2, draws=4000, subjects=[f"p{i // 10}" for i in range(400)])
    assert persons.metrics[:, 0].std() / faces == pytest.approx(np.sqrt(10), rel=0.06)


def test_replicates_are_seeded_and_shared_between_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat([0, 1], 30)
    right, wrong = labels[None], 1 - labels[None]
    first = bootstrap(labels, right, num_classes=2, draws=20, seed=1)
    np.testing.assert_array_equal(first.metrics, bootstrap(labels, right, num_classes=2, draws=20, seed=1).metrics)
    mixed = np.where(np.arange(60) % 3 == 0, 1 - labels, labels)[None]
    one = bootstrap(labels, mixed, num_classes=2, draws=20, seed=1).metrics[:, 0]
    other = bootstrap(labels, 1 - mixed, num_classes=2, draws=20, seed=1).metrics[:, 0]
    np.testing.assert_allclose(one + other, 1)  # only true when both met the same faces
    assert (bootstrap(labels, wrong, num_classes=2, draws=5).metrics[:, 0] == 0).all()
    whole = bootstrap(labels, mixed, num_classes=2, draws=20, seed=1)
    monkeypatch.setattr("fer_pipeline.evaluation.statistics.CHUNK_VALUES", 1)
    np.testing.assert_array_equal(whole.metrics, bootstrap(labels, mixed, num_classes=2, draws=20, seed=1).metrics)


def test_percentiles_skip_replicates_without_a_figure() -> None:
    replicates = np.array([np.nan, *np.linspace(0, 1, 1001)])
    found = percentile_interval(replicates, estimate=0.5, count=9)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert percentile_interval(np.array([np.nan]), estimate=0.5, count=9).low is None
    assert METRICS[0] == "accuracy"


def test_wilson_by_hand() -> None:
    """Centre (p + z²/2n) / (1 + z²/n), here for 8 of 10."""
    z = stats.norm.ppf(0.975)
    centre = (0.8 + z * z / 20) / (1 + z * z / 10)
    half = z / (1 + z * z / 10) * np.sqrt(0.8 * 0.2 / 10 + z * z / 400)
    found = share_interval(8, 10)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert share_interval(0, 0).low is None
