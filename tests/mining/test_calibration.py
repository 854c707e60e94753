"""Estimated precisions against simulated worlds whose truth is known, and intervals against SciPy and by coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.core.errors import DataError
from fer_pipeline.mining.calibration import Calibration, CalibrationSettings, Estimate, calibrate, wilson
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
    settings = CalibrationSettings(**{"support": 20, "level": 0.95, "class_prior": "anchor", **options})
    return calibrate(
        Ranking(nearest, margin), label, Ranking(pool_nearest, pool_margin), settings, shares=None, num_classes=3
    )


def thresholds_by(rule: MarginRule, pool, made: Calibration) -> np.ndarray:
    ranking = Ranking(pool[1], pool[2])
    return find_thresholds(rule, ranking, values=rule.values(CLASSES), caps=rule.caps(CLASSES), calibration=made)


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
    np.testing.assert_array_equal(found.heldout[:, 1:], [[1, 0]] * 4)
    assert np.isnan(found.precision[:, 1:]).all(), "one face is fewer than the support of two: no number"
    assert np.isnan(found.low[:, 1:]).all()
    assert found.high[:, 0].tolist()[2:] == [1, 1], "carried on from below, where it may be lower than here"
    assert made.evident.tolist() == [True, False, False]
    assert made.reasons()[:2] == ["", "1 held-out faces predicted so, 2 wanted"]


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


@pytest.mark.parametrize("m", [0.0, 0.5, 1.0, 2.0])
def test_estimate_meets_the_truth_of_a_like_pool(m: float) -> None:
    pool = faces(1, 200_000, (0.5, 0.3, 0.2))
    made = calibration(faces(0, 20_000, (0.5, 0.3, 0.2)), pool)
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


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_equals_scipy(level: float) -> None:
    for right, number in [(0, 5), (3, 7), (50, 100), (20, 20)]:
        low, high = wilson(np.array([right / number]), np.array([number]), level=level)
        expected = binomtest(right, number).proportion_ci(level, method="wilson")
        np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-12)


def test_weighted_interval_of_one_class_is_its_own() -> None:
    one = np.array([[0.7, np.nan]])
    faces = np.array([[5, 0]])
    mean, low, high = Estimate(one, one - 0.1, one + 0.2, faces).combined(faces)
    np.testing.assert_allclose([mean[0], low[0], high[0]], [0.7, 0.6, 0.9])
    assert np.isnan(Estimate(one, one, one, faces).combined(np.array([[0, 9]]))[0]).all()


def test_where_every_class_is_right_so_is_the_whole() -> None:
    """The shares of these counts add up to 1 + 2e-16 in floating point; a reader of shares takes none over 1."""
    counts = np.array([[31, 33, 15, 35, 6]])
    sure = np.ones((1, 5))
    assert (counts / counts.sum()).sum() > 1
    mean, _, _ = Estimate(sure, sure, sure, counts).combined(counts)
    assert mean[0] == 1


def test_what_is_not_known_is_wrong_in_the_lower_bound_and_right_in_the_upper_one() -> None:
    """40 faces of 0.8 (0.7 to 0.9), 40 of 0.5 without a lower bound, 20 of which nothing is known."""
    estimate = Estimate(
        np.array([[0.8, 0.5, np.nan]]), np.array([[0.7, np.nan, np.nan]]), np.array([[0.9, 0.6, np.nan]]),
        np.array([[30, 30, 3]]),
    )  # fmt: skip
    mean, low, high = estimate.combined(np.array([[40, 40, 20]]))
    np.testing.assert_allclose(mean, 0.65)
    np.testing.assert_allclose(low, 0.8 * (0.5 * 0.8 - 0.5 * 0.1))
    np.testing.assert_allclose(high, 0.8 * (0.65 + np.hypot(0.05, 0.05)) + 0.2)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("bound", ["estimate", "lower"])
def test_wanted_precision_is_reached_with_as_many_faces_as_possible(per_class: bool, bound: str) -> None:
    pool, heldout = faces(8, 100_000, (0.5, 0.3, 0.2), noise=0.8), faces(9, 5_000, (0.5, 0.3, 0.2), noise=0.8)
    made = calibration(heldout, pool)
    label, nearest, margin = pool
    rule = MarginRule(by="precision", value=0.85, per_class=per_class, bound=bound)
    found = thresholds_by(rule, (None, nearest, margin), made)
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
        thresholds_by(MarginRule(by="precision", value=0.999), pool, made)
    assert "\n" not in str(raised.value)


def test_a_class_without_evidence_keeps_nothing_of_a_wanted_precision() -> None:
    label, nearest, margin = faces(12, 3_000, (0.5, 0.3, 0.2))
    seen = nearest != 2
    pool = faces(13, 3_000, (0.5, 0.3, 0.2))
    made = calibration((label[seen], nearest[seen], margin[seen]), pool)
    found = thresholds_by(MarginRule(by="precision", value=0.8), pool, made)
    assert np.isinf(found).tolist() == [False, False, True]


def test_sweep_counts_and_precisions_equal_brute_force() -> None:
    pool, heldout = faces(14, 5_000, (0.5, 0.3, 0.2)), faces(15, 2_000, (0.5, 0.3, 0.2))
    made = calibration(heldout, pool, support=1)
    grid = made.grid(points=11, used=np.array([0.123, np.inf]))
    assert grid[0] == 0
    assert 0.123 in grid
    assert len(grid) == 12
    assert grid[-1] == pool[2].max()
    sweep = made.sweep(grid)
    assert sweep.kept[-1].sum() == 1
    for row, m in enumerate(grid[:4]):
        for k in range(3):
            assert sweep.kept[row, k] == ((pool[1] == k) & (pool[2] >= m)).sum()
            chosen = (heldout[1] == k) & (heldout[2] >= m)
            np.testing.assert_allclose(sweep.interval[row, k, 0], (heldout[0][chosen] == k).mean())
        np.testing.assert_allclose(
            sweep.overall[row, 0], (sweep.kept[row] * sweep.interval[row, :, 0]).sum() / sweep.kept[row].sum()
        )


def test_thresholds_for_counts_equal_brute_force() -> None:
    """The smallest value that at most so many faces reach; a tie that crosses the count stays out as a whole."""
    rng = np.random.default_rng(16)
    pool = (None, rng.integers(0, 3, 40), rng.integers(1, 9, 40).astype(np.float32) / 8)
    made = calibration(faces(17, 100, (0.5, 0.3, 0.2)), pool)
    counts = np.arange(43)
    for count, found in zip(counts, made.thresholds_for(counts), strict=True):
        offers = [value for value in np.unique(pool[2]) if (pool[2] >= value).sum() <= count]
        assert found == min(offers, default=np.inf)


def test_per_class_a_precision_out_of_reach_empties_that_class_alone() -> None:
    """Predicted neutral is right half the time whatever the margin; predicted anger always."""
    margin = np.tile(np.linspace(0.1, 1, 50, dtype=np.float32), 2)
    nearest = np.repeat([0, 2], 50)
    label = np.where((nearest == 2) & (np.arange(100) % 2 == 0), 1, nearest)
    made = calibration((label, nearest, margin), (label, nearest, margin))
    rule = MarginRule(by="precision", value=0.9, per_class=True)
    found = thresholds_by(rule, (None, nearest, margin), made)
    assert found.tolist() == [np.float32(0.1), np.inf, np.inf]
