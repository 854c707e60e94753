"""Estimated precisions against simulated worlds whose truth is known, and intervals against SciPy and by coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fer_pipeline.core.errors import DataError
from fer_pipeline.mining.calibration import (
    Calibration,
    CalibrationSettings,
    Estimate,
    Predictions,
    calibrate,
    class_weights,
    isotonic_share,
    wilson,
)
from fer_pipeline.mining.margin import MarginRule, find_thresholds, passes

CLASSES = ("anger", "fear", "neutral")


def faces(
    seed: int, n: int, shares: tuple[float, ...], *, noise: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True class, nearest class and margin of faces whose score is their class plus noise."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=shares).astype(np.int64)
    scores = np.eye(3)[label] + noise * rng.standard_normal((n, 3))
    ordered = np.sort(scores, axis=1)
    return label, scores.argmax(axis=1).astype(np.int64), (ordered[:, 2] - ordered[:, 1]).astype(np.float32)


def calibration(heldout, pool, **options) -> Calibration:
    label, nearest, margin = heldout
    _, pool_nearest, pool_margin = pool
    return calibrate(
        Predictions(nearest, margin, label),
        Predictions(pool_nearest, pool_margin),
        CalibrationSettings(**{"support": 20, "level": 0.95, **options}),
        num_classes=3,
    )


def estimate_and_truth(made: Calibration, pool, m: float) -> tuple[float, float, float, float]:
    label, nearest, margin = pool
    thresholds = np.full((1, 3), m)
    mean, low, high = (float(v[0]) for v in made.estimate(thresholds).combined(made.count_passing(thresholds)))
    kept = margin >= m
    return mean, low, high, float((label == nearest)[kept].mean())


def test_class_precision_by_hand() -> None:
    """Predicted anger, by falling margin: right, right, wrong, right (tied with the wrong one), wrong."""
    label = np.array([0, 0, 1, 0, 2, 1])
    nearest = np.array([0, 0, 0, 0, 0, 1])
    margin = np.array([0.9, 0.8, 0.5, 0.5, 0.1, 0.4], np.float32)
    made = calibration((label, nearest, margin), (label, nearest, margin), support=2)
    found = made.estimate(np.array([[0.0] * 3, [0.5] * 3, [0.6] * 3, [0.85] * 3]))
    np.testing.assert_allclose(found.precision[:, 0], [3 / 5, 3 / 4, 1, 1])
    np.testing.assert_array_equal(found.heldout[:, 0], [5, 4, 2, 2])  # at 0.85 carried on from the support of 2
    np.testing.assert_array_equal(found.heldout[:, 2], 0)
    assert np.isnan(found.precision[:, 2]).all()
    assert made.covered.tolist() == [True, True, False]


def test_mined_counts_weigh_the_classes() -> None:
    """Two predicted classes with precision 1 and 0.5: a pool nine tenths of the second has 0.55."""
    label = np.array([0] * 40 + [1] * 20 + [2] * 20)
    nearest = np.array([0] * 40 + [1] * 40)
    margin = np.full(80, 0.5, np.float32)
    pool = (np.zeros(100, np.int64), np.array([0] * 10 + [1] * 90), np.full(100, 0.5, np.float32))
    made = calibration((label, nearest, margin), pool)
    thresholds = np.full((1, 3), 0.5)
    mean, _, _ = made.estimate(thresholds).combined(made.count_passing(thresholds))
    np.testing.assert_allclose(mean, [0.55])


@pytest.mark.parametrize("estimator", ["tail", "isotonic"])
@pytest.mark.parametrize("m", [0.0, 0.5, 1.0, 2.0])
def test_estimate_meets_the_truth_of_a_like_pool(estimator: str, m: float) -> None:
    pool = faces(1, 200_000, (0.5, 0.3, 0.2))
    made = calibration(faces(0, 20_000, (0.5, 0.3, 0.2)), pool, estimator=estimator)
    mean, low, high, truth = estimate_and_truth(made, pool, m)
    deviation = (high - low) / 3.92
    assert abs(mean - truth) < 4 * deviation
    assert deviation < 0.015


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    pool = faces(99, 100_000, (0.5, 0.3, 0.2))
    hits = 0
    for seed in range(200):
        made = calibration(faces(seed, 400, (0.5, 0.3, 0.2)), pool)
        _, low, high, truth = estimate_and_truth(made, pool, 0.5)
        hits += low <= truth <= high
    assert binomtest(hits, 200, 0.95).pvalue > 0.001


def test_pool_prior_mends_what_other_true_shares_break() -> None:
    """An anchor of even classes and a pool nine tenths neutral: what is predicted anger is mostly neutral there."""
    heldout, pool = faces(3, 50_000, (1 / 3, 1 / 3, 1 / 3)), faces(4, 200_000, (0.05, 0.05, 0.9))
    passing = (pool[1] == 0) & (pool[2] >= 0.3)
    truth = (pool[0] == 0)[passing].mean()
    thresholds = np.full((1, 3), 0.3)
    plain = calibration(heldout, pool).estimate(thresholds)
    mended = calibration(heldout, pool, class_prior="pool").estimate(thresholds)
    assert plain.precision[0, 0] - truth > 0.3
    assert abs(mended.precision[0, 0] - truth) < 0.02
    width = mended.high - mended.low
    assert width[0, 0] > 0  # unequal weights are worth fewer faces
    assert (width / mended.precision)[0, 0] > ((plain.high - plain.low) / plain.precision)[0, 0]


def test_class_weights_recover_the_shares_of_the_pool() -> None:
    label, nearest, _ = faces(5, 100_000, (0.6, 0.3, 0.1))
    _, pool_nearest, _ = faces(6, 100_000, (0.1, 0.2, 0.7))
    weights = class_weights(label, nearest, pool_nearest, num_classes=3)
    np.testing.assert_allclose(weights * [0.6, 0.3, 0.1], [0.1, 0.2, 0.7], atol=0.02)
    same = class_weights(label, nearest, nearest, num_classes=3)
    np.testing.assert_allclose(same, 1, atol=0.02)


def test_isotonic_share_by_hand() -> None:
    """Chances by margin 0.2, 0.4, 0.6: wrong, right, wrong -> 0, then the violators together 0.5."""
    found = isotonic_share(
        np.array([False, True, False]),
        np.array([0.6, 0.4, 0.2])[::-1].copy(),
        np.ones(3),
        pool=np.array([0.1, 0.3, 0.5, 0.9], np.float32),
        thresholds=np.array([0.0, 0.4, 2.0]),
    )
    np.testing.assert_allclose(found, [(0 + 0 + 0.5 + 0.5) / 4, 0.5, 0.5])


def test_isotonic_is_not_flattered_by_a_pool_of_lower_margins() -> None:
    """The same chance of being right at every margin, but the pool's passing faces lie lower."""
    rng = np.random.default_rng(7)

    def world(n: int, power: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        margin = rng.random(n) ** power
        right = rng.random(n) < 0.5 + 0.5 * margin
        return np.where(right, 0, 1).astype(np.int64), np.zeros(n, np.int64), margin.astype(np.float32)

    heldout, pool = world(20_000, 0.5), world(100_000, 3)
    tail, *_, truth = estimate_and_truth(calibration(heldout, pool), pool, 0.2)
    isotonic, *_ = estimate_and_truth(calibration(heldout, pool, estimator="isotonic"), pool, 0.2)
    assert abs(tail - truth) > 0.05
    assert abs(isotonic - truth) < 0.01


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(level: float) -> None:
    for right, number in [(0, 5), (3, 7), (50, 100), (20, 20)]:
        low, high = wilson(np.array([right / number]), np.array([number]), level=level)
        expected = binomtest(right, number).proportion_ci(level, method="wilson")
        np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-12)


def test_weighted_interval_of_one_class_is_its_own() -> None:
    one = np.array([[0.7, np.nan]])
    faces = np.array([[5, 9]])
    mean, low, high = Estimate(one, one - 0.1, one + 0.2, faces).combined(faces)
    np.testing.assert_allclose([mean[0], low[0], high[0]], [0.7, 0.6, 0.9])
    assert np.isnan(Estimate(one, one, one, faces).combined(np.array([[0, 9]]))[0]).all()


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("bound", ["estimate", "lower"])
def test_wanted_precision_is_reached_with_as_many_faces_as_possible(per_class: bool, bound: str) -> None:
    pool, heldout = faces(8, 100_000, (0.5, 0.3, 0.2), noise=0.8), faces(9, 5_000, (0.5, 0.3, 0.2), noise=0.8)
    made = calibration(heldout, pool)
    label, nearest, margin = pool
    rule = MarginRule(by="precision", value=0.85, per_class=per_class, bound=bound)
    found = find_thresholds(rule, nearest, margin, calibration=made, classes=CLASSES)
    assert (found > 0).all()
    kept = passes(nearest, margin, found)
    truth = (label == nearest)[kept].mean()
    assert 0.84 < truth < 0.90
    estimate = made.estimate(found[None])
    precision, low, _ = estimate.combined(made.count_passing(found[None]))
    if per_class:
        precision, low = estimate.precision[0], estimate.low[0]
    assert ((precision if bound == "estimate" else low) >= 0.85).all()
    if not per_class:  # no smaller held-out margin would do
        smaller = np.unique(np.append(heldout[2], margin.min()))
        smaller = smaller[smaller < found[0]]
        offers = np.repeat(smaller[:, None].astype(np.float64), 3, axis=1)
        precision, low, _ = made.estimate(offers).combined(made.count_passing(offers))
        assert ((precision if bound == "estimate" else low) < 0.85).all()


def test_a_precision_out_of_reach_tells_the_best() -> None:
    pool = faces(10, 2_000, (0.4, 0.3, 0.3), noise=3)
    made = calibration(faces(11, 500, (0.4, 0.3, 0.3), noise=3), pool)
    with pytest.raises(
        DataError, match=r"no margin reaches the wanted precision of 0.999: the best estimate .* keeps"
    ) as raised:
        find_thresholds(MarginRule(by="precision", value=0.999), pool[1], pool[2], calibration=made, classes=CLASSES)
    assert "\n" not in str(raised.value)


def test_a_class_without_evidence_keeps_nothing_of_a_wanted_precision() -> None:
    label, nearest, margin = faces(12, 3_000, (0.5, 0.3, 0.2))
    seen = nearest != 2
    pool = faces(13, 3_000, (0.5, 0.3, 0.2))
    made = calibration((label[seen], nearest[seen], margin[seen]), pool)
    found = find_thresholds(MarginRule(by="precision", value=0.8), pool[1], pool[2], calibration=made, classes=CLASSES)
    assert np.isinf(found).tolist() == [False, False, True]


def test_sweep_counts_and_precisions_equal_brute_force() -> None:
    pool, heldout = faces(14, 5_000, (0.5, 0.3, 0.2)), faces(15, 2_000, (0.5, 0.3, 0.2))
    made = calibration(heldout, pool, support=1)
    table = made.sweep(points=11, used=np.array([0.123, np.inf]))
    assert table["margin"][0] == 0
    assert 0.123 in table["margin"]
    assert len(table["margin"]) == 12
    assert table["kept"][-1].sum() == 1
    assert table["margin"][-1] == pool[2].max()
    for row, m in enumerate(table["margin"][:4]):
        for k in range(3):
            assert table["kept"][row, k] == ((pool[1] == k) & (pool[2] >= m)).sum()
            chosen = (heldout[1] == k) & (heldout[2] >= m)
            np.testing.assert_allclose(table["interval"][row, k, 0], (heldout[0][chosen] == k).mean())
        np.testing.assert_allclose(
            table["overall"][row, 0],
            (table["kept"][row] * table["interval"][row, :, 0]).sum() / table["kept"][row].sum(),
        )


def test_per_class_a_precision_out_of_reach_empties_that_class_alone() -> None:
    """Predicted neutral is right half the time whatever the margin; predicted anger always."""
    margin = np.tile(np.linspace(0.1, 1, 50, dtype=np.float32), 2)
    nearest = np.repeat([0, 2], 50)
    label = np.where((nearest == 2) & (np.arange(100) % 2 == 0), 1, nearest)
    made = calibration((label, nearest, margin), (label, nearest, margin))
    rule = MarginRule(by="precision", value=0.9, per_class=True)
    found = find_thresholds(rule, nearest, margin, calibration=made, classes=CLASSES)
    assert found.tolist() == [np.float32(0.1), np.inf, np.inf]
