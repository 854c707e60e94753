"""Intervals against closed forms, scipy, and a plain resampling loop."""

import numpy as np
import pytest
from scipy import stats

from fer_pipeline.evaluation.metrics import METRICS, all_metrics, confusion_matrix
from fer_pipeline.evaluation.predictions import Predictions
from fer_pipeline.evaluation.statistics import (
    Contrast,
    Evaluation,
    Interval,
    Part,
    Resampling,
    bootstrap,
    contrast,
    decide,
    evaluate,
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
    found = percentile_interval(replicates.metrics[:, 0, 0], estimate=hits / count, count=count)
    low, high = stats.binom.ppf([0.025, 0.975], count, hits / count) / count
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)
    assert replicates.metrics[:, 0, 0].std() == pytest.approx(np.sqrt(0.8 * 0.2 / count), rel=0.03)


def test_bootstrap_spread_of_the_class_mean_is_the_stratified_one() -> None:
    """Var = mean of p(1-p)/n over classes, divided by the number of classes again."""
    sizes, shares = (40, 100, 20), (0.5, 0.9, 0.25)
    labels = np.repeat(np.arange(3), sizes)
    predicted = np.concatenate(
        [np.where(np.arange(n) < p * n, k, (k + 1) % 3) for k, (n, p) in enumerate(zip(sizes, shares, strict=True))]
    )
    replicates = bootstrap(labels, predicted[None], num_classes=3, draws=20_000)
    variance = sum(p * (1 - p) / n for n, p in zip(sizes, shares, strict=True)) / 9
    assert replicates.metrics[:, 0, 1].std() == pytest.approx(np.sqrt(variance), rel=0.03)
    assert replicates.metrics[:, 0, 1].mean() == pytest.approx(0.55, abs=0.005)


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
            np.testing.assert_allclose(found.metrics[index], per_seed)


def test_clusters_widen_the_interval_where_faces_of_a_person_agree() -> None:
    """Ten copies of each person: the honest spread is that of the persons, sqrt(10) times that of the faces."""
    rng = np.random.default_rng(0)
    hit = np.repeat(rng.random(40) < 0.5, 10)
    labels = np.zeros(400, int)
    predicted = np.where(hit, 0, 1)[None]
    faces = bootstrap(labels, predicted, num_classes=2, draws=4000).metrics[:, 0, 0].std()
    persons = bootstrap(labels, predicted, num_classes=2, draws=4000, subjects=[f"p{i // 10}" for i in range(400)])
    assert persons.metrics[:, 0, 0].std() / faces == pytest.approx(np.sqrt(10), rel=0.06)


def test_replicates_are_seeded_and_shared_between_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.repeat([0, 1], 30)
    right, wrong = labels[None], 1 - labels[None]
    first = bootstrap(labels, right, num_classes=2, draws=20, seed=1)
    np.testing.assert_array_equal(first.metrics, bootstrap(labels, right, num_classes=2, draws=20, seed=1).metrics)
    mixed = np.where(np.arange(60) % 3 == 0, 1 - labels, labels)[None]
    one = bootstrap(labels, mixed, num_classes=2, draws=20, seed=1).metrics[:, 0, 0]
    other = bootstrap(labels, 1 - mixed, num_classes=2, draws=20, seed=1).metrics[:, 0, 0]
    np.testing.assert_allclose(one + other, 1)  # only true when both met the same faces
    assert (bootstrap(labels, wrong, num_classes=2, draws=5).metrics[:, 0, 0] == 0).all()
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


def of_parts(mean: float, *, seeds: tuple[Part, ...] = (), samples: tuple[Part, ...] = ()) -> Contrast:
    return Contrast(mean, 5, seeds, samples, sum(one.variance for one in samples))


def test_a_difference_that_one_thing_varies_is_the_textbooks() -> None:
    """Seeds alone: Student's t of scipy. Persons alone, and many of them: the normal interval."""
    values = np.array([0.02, 0.035, 0.01, 0.027, 0.004])
    found = of_parts(values.mean(), seeds=(Part(values.var(ddof=1) / 5, 4),), samples=(Part(0.0, 30),))
    wanted = stats.ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(wanted.pvalue)
    for level in (0.95, 0.995):
        low, high = wanted.confidence_interval(level)
        assert (found.interval(level).low, found.interval(level).high) == pytest.approx((low, high))
    persons = of_parts(0.03, samples=(Part(1e-4, 1e9),))
    assert persons.p_value == pytest.approx(2 * stats.norm.sf(3), rel=1e-4)
    assert persons.half_width(0.95) == pytest.approx(0.01 * stats.norm.ppf(0.975))
    assert of_parts(0.0, samples=(Part(0.0, 9),)).p_value == 1


@pytest.mark.parametrize("level", [0.95, 1 - 0.05 / 8])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_the_joint_interval_covers_at_every_ratio_of_its_parts(level: float, share: float) -> None:
    """Three seeds, 24 persons, 40,000 normal differences: at least the level, but for three standard errors."""
    rng, count = np.random.default_rng(0), 40_000
    freedoms, variances = np.array([2, 23]), np.array([share, 1 - share])
    estimated = variances * rng.chisquare(freedoms, (count, 2)) / freedoms
    covered = np.abs(rng.normal(size=count)) <= np.sqrt(estimated @ stats.t.ppf((1 + level) / 2, freedoms) ** 2)
    assert covered.mean() >= level - 3 * np.sqrt(level * (1 - level) / count)
    rows = [of_parts(0.0, seeds=(Part(a, 2),), samples=(Part(b, 23),)) for a, b in estimated[:5]]
    widths = np.sqrt(estimated[:5] @ stats.t.ppf((1 + level) / 2, freedoms) ** 2)
    assert [row.half_width(level) for row in rows] == pytest.approx(widths.tolist())


def test_holm_by_hand_and_its_intervals_say_the_same() -> None:
    """p of 0.01, 0.04, 0.03 and 0.005 become 0.03, 0.06, 0.06 and 0.02 (Holm 1979)."""
    values = [0.01, 0.04, 0.03, 0.005]
    rows = [of_parts(float(stats.norm.isf(p / 2)) / 100, samples=(Part(1e-4, 1e9),)) for p in values]
    found = decide(rows)
    assert [one.p_value for one in found] == pytest.approx([0.03, 0.06, 0.06, 0.02], rel=1e-4)
    assert [one.claim for one in found] == ["above", "unclear", "unclear", "above"]
    rng = np.random.default_rng(2)
    for _ in range(50):
        size = int(rng.integers(1, 9))
        rows = [of_parts(rng.normal(0, 0.03), seeds=(Part(rng.exponential(1e-4), 4),)) for _ in range(size)]
        for one in decide(rows):
            assert (one.claim != "unclear") == (one.p_value < 0.05)
    untold = Contrast(0.5, 1, (), (Part(1e-6, 9),), 1e-6, "one seed")
    assert [one.claim for one in decide([untold, of_parts(0.022, samples=(Part(1e-4, 1e9),))])] == ["unclear"] * 2


def test_seeds_needed_is_the_power_of_the_t_test() -> None:
    """Seeds alone vary, by 1.2 points a pair: the noncentral t says how many find a point with a power of 80 %."""
    deviation, level = 0.012, 1 - 0.05 / 3
    needed = of_parts(0.0, seeds=(Part(deviation**2 / 5, 4),)).seeds_needed(level)
    sizes = np.arange(2, 60)
    critical, shift = stats.t.ppf((1 + level) / 2, sizes - 1), 0.01 / deviation * np.sqrt(sizes)
    exact = sizes[stats.nct.sf(critical, sizes - 1, shift) >= 0.8][0]
    assert needed is not None
    assert abs(needed - exact) <= 1
    assert of_parts(0.0, seeds=(Part(1e-6, 4),), samples=(Part(1e-4, 40),)).seeds_needed(level) is None


def measured(
    seeds: tuple[int, ...], *, rng: np.random.Generator, trained: bool = True, rare: int = 8, draws: int = 4000
) -> Evaluation:
    """Three classes, 20 persons with 6 faces each, persons whom every seed finds hard."""
    labels = np.arange(120) % 3
    labels[labels == 2] = np.where(np.arange(40) < rare, 2, 0)
    hard = np.repeat(np.random.default_rng(7).random(20) < 0.4, 6)
    right = rng.random((len(seeds), 120)) < np.where(hard, 0.3, 0.9)
    shares = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    subjects = np.array([f"p{i // 6}" for i in range(120)], dtype=object)
    names = np.arange(120).astype(str).astype(object)
    predictions = Predictions(("a", "b", "c"), seeds, names, labels, subjects, shares, trained)
    return evaluate(predictions, Resampling(bootstrap=draws), target="t")


def class_means(result: Evaluation, kept: np.ndarray) -> np.ndarray:
    labels, hits = result.predictions.labels[kept], (result.predictions.predicted == result.predictions.labels)[:, kept]
    return np.mean([hits[:, labels == k].mean(1) for k in np.unique(labels)], axis=0)


def test_parts_of_a_contrast_by_hand_and_by_the_jackknife() -> None:
    """Seeds by their own variance; persons by leaving out one after the other, another estimate of it."""
    rng = np.random.default_rng(3)
    one, other = measured((4, 5, 6), rng=rng, rare=40), measured((5, 6, 7, 4), rng=rng, rare=40)
    found = contrast([(one, other)], "mean_class_accuracy")
    everyone = np.ones(120, bool)
    paired = class_means(one, everyone) - class_means(other, everyone)[[3, 0, 1]]
    assert found.num_seeds == 3
    assert found.mean == pytest.approx(paired.mean())
    assert found.seeds == (pytest.approx((paired.var(ddof=1) / 3, 2)),)
    person = np.arange(120) // 6
    without = [class_means(one, person != p) - class_means(other, person != p)[[3, 0, 1]] for p in range(20)]
    jackknife = 19 / 20 * np.sum((np.mean(without, 1) - np.mean(without)) ** 2)
    [persons] = found.samples
    assert persons.variance == pytest.approx(jackknife, rel=0.15)
    assert persons.freedom == pytest.approx(19, abs=0.2)
    several = contrast([(one, other), (one, other)], "mean_class_accuracy")
    assert several.mean == pytest.approx(found.mean)
    assert [part.variance for part in several.samples] == pytest.approx([persons.variance / 4] * 2)


def test_differences_of_two_pairs_by_hand_and_in_the_limit() -> None:
    """What is the same for both recipes of the second pair changes nothing; else every seed gives a difference."""
    rng = np.random.default_rng(4)
    one, other, third, fourth = (measured((4, 5, 6), rng=rng, rare=40) for _ in range(4))
    alone = contrast([(one, other)], "mean_class_accuracy")
    same = contrast([(one, other, third, third)], "mean_class_accuracy")
    assert (same.mean, same.samples_alone) == pytest.approx((alone.mean, alone.samples_alone))
    assert [*same.seeds, *same.samples] == [pytest.approx(part) for part in (*alone.seeds, *alone.samples)]
    found = contrast([(one, other, third, fourth)], "mean_class_accuracy")
    everyone, person = np.ones(120, bool), np.arange(120) // 6

    def by_seed(kept: np.ndarray) -> np.ndarray:
        a, b, c, d = (class_means(result, kept) for result in (one, other, third, fourth))
        return (a - b) - (c - d)

    assert found.mean == pytest.approx(by_seed(everyone).mean())
    assert found.seeds == (pytest.approx((by_seed(everyone).var(ddof=1) / 3, 2)),)
    without = [by_seed(person != p).mean() for p in range(20)]
    jackknife = 19 / 20 * np.sum((without - np.mean(without)) ** 2)
    assert found.samples[0].variance == pytest.approx(jackknife, rel=0.15)


def test_of_few_persons_the_variance_is_that_of_a_mean_of_their_accuracies() -> None:
    """Three persons of ten faces each: the plug-in variance of the bootstrap would be two thirds of it."""
    labels, person = np.tile([0, 1], 15), [f"p{index // 10}" for index in range(30)]
    right = np.repeat([9, 4, 6], 10) > np.tile(np.arange(10), 3)
    made = bootstrap(labels, np.where(right, labels, 1 - labels)[None], num_classes=2, subjects=person, draws=20_000)
    part = made.variance(made.metrics[:, 0, METRICS.index("accuracy")], "accuracy")
    assert part.variance == pytest.approx(np.var([0.9, 0.4, 0.6], ddof=1) / 3, rel=0.05)
    assert part.freedom == pytest.approx(2, rel=1e-3)


def test_what_is_not_paired_or_not_trained_varies_by_itself() -> None:
    rng = np.random.default_rng(5)
    one, other, peer = (measured(seeds, rng=rng) for seeds in ((1, 2, 3), (7, 8), (0,)))
    peer = measured((0,), rng=rng, trained=False)
    apart = contrast([(one, other)], "accuracy")
    spread = [np.var([row.accuracy for row in result.seeds.values()], ddof=1) for result in (one, other)]
    assert [part.variance for part in apart.seeds] == pytest.approx([spread[0] / 3, spread[1] / 2])
    assert [part.variance for part in contrast([(one, peer)], "accuracy").seeds] == pytest.approx([spread[0] / 3])
    alone = contrast([(peer, peer)], "accuracy")
    assert (alone.seeds, alone.unknown, alone.mean, alone.num_seeds) == ((), "", 0, 0)


def test_what_leaves_no_spread_to_see_is_never_claimed() -> None:
    rng = np.random.default_rng(5)
    one, other = measured((1,), rng=rng, draws=100), measured((1,), rng=rng, draws=100)
    assert contrast([(one, other)], "accuracy").unknown == "one seed"
    rare = [measured((1, 2), rng=rng, rare=1, draws=100) for _ in range(2)]
    found = contrast([(rare[0], rare[1])], "mean_class_accuracy")
    assert found.unknown == "a class that one person alone shows"
    assert (found.interval().low, found.p_value) == (None, 1)
    assert not contrast([(rare[0], rare[1])], "accuracy").unknown
