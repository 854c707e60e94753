"""Estimated shares and precisions against simulated pools of other mixes than the anchor, whose truth is known."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from fer_pipeline.artifacts.scores import Ranking
from fer_pipeline.mining.calibration import Calibration, CalibrationSettings, calibrate
from fer_pipeline.mining.shares import PoolShares, estimate_shares, fit_scaling, solve_shares

MIX = np.array([0.005, 0.02, 0.1, 0.3, 0.575])  # rare classes down to half a percent
SUPPORT, MARGINS = 20, np.array([0.0, 1.0, 2.5])
SIMULATIONS = 40


@dataclass(frozen=True)
class World:
    """Held-out faces of some persons, and a pool of 8,000 with another mix in a random order of the classes."""

    heldout: tuple[np.ndarray, np.ndarray, np.ndarray]  # scores, labels, persons
    pool: tuple[np.ndarray, np.ndarray]

    @property
    def true_shares(self) -> np.ndarray:
        return np.bincount(self.pool[1], minlength=len(MIX)) / len(self.pool[1])

    def estimate(self, *, seed: int = 0) -> PoolShares:
        scores = self.pool[0]
        return estimate_shares(*self.heldout, lambda: [scores[:100], scores[100:]], level=0.95, seed=seed)

    def calibrate(self, *, prior: str) -> Calibration:
        settings, shares = CalibrationSettings(support=SUPPORT), self.estimate() if prior == "pool" else None
        heldout, pool = rank(self.heldout[0]), rank(self.pool[0])
        return calibrate(heldout, self.heldout[1], pool, settings, shares=shares, num_classes=len(MIX))

    def true_precision(self) -> np.ndarray:
        """By margin and class."""
        ranking, right = rank(self.pool[0]), rank(self.pool[0]).label == self.pool[1]
        passing = [(ranking.value >= m)[:, None] & (ranking.label[:, None] == np.arange(len(MIX))) for m in MARGINS]
        return np.array([(right[:, None] & chosen).sum(0) / np.maximum(chosen.sum(0), 1) for chosen in passing])


def rank(scores: np.ndarray) -> Ranking:
    ordered = np.sort(scores, axis=1)
    return Ranking(scores.argmax(axis=1), ordered[:, -1] - ordered[:, -2])


def simulate(seed: int, *, mix: np.ndarray = MIX, size: int = 8_000) -> World:
    """20 to 80 held-out faces a class, about three of a person, who has a look of his own; scores that mean no odds."""
    rng = np.random.default_rng(seed)
    num_classes = len(mix)
    centres = 0.6 * rng.standard_normal((num_classes, num_classes)) + rng.uniform(2, 4) * np.eye(num_classes)

    def draw(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        person = rng.integers(0, max(len(label) // 3, 1), len(label))
        look = 0.4 * rng.standard_normal((person.max() + 1, num_classes))
        return centres[label] + look[person] + rng.standard_normal((len(label), num_classes)), person

    heldout = np.repeat(np.arange(num_classes), rng.integers(20, 81, num_classes))
    pool = rng.choice(num_classes, size, p=rng.permutation(mix))
    scores, person = draw(heldout)
    return World((scores, heldout, np.unique(person, return_inverse=True)[1]), (draw(pool)[0], pool))


@pytest.fixture(scope="module")
def simulations() -> list[dict[str, Any]]:
    """For each world: its truth, and the lower bounds by either prior, in the order of the shares."""
    rows = []
    for seed in range(SIMULATIONS):
        world = simulate(seed)
        order = np.argsort(world.true_shares)
        truth, every = world.true_precision(), np.repeat(MARGINS[:, None], len(MIX), axis=1)
        row: dict[str, Any] = {"truth": truth[:, order]}
        for prior in ("pool", "anchor"):
            made = world.calibrate(prior=prior)
            estimate, counts = made.estimate(every), made.count_passing(every)
            row[prior] = estimate.low[:, order]
            row[f"{prior} mean"] = estimate.precision[:, order]
            row[f"{prior} total"] = estimate.combined(counts)
            row["total"] = (truth * counts).sum(axis=1) / counts.sum(axis=1)
            if made.shares is not None:
                row["shares"] = [part[order] for part in (made.shares.low, made.shares.share, made.shares.high)]
                row["true shares"] = world.true_shares[order]
        rows.append(row)
    return rows


def covered(simulations: list[dict[str, Any]], prior: str) -> np.ndarray:
    """How often the lower bound of each margin and class lies below the truth, where there is one."""
    low, truth = (np.stack([row[name] for row in simulations]) for name in (prior, "truth"))
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(np.isnan(low), np.nan, low <= truth), axis=0)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_lower_bounds_hold_in_nine_of_ten_simulations_of_every_class(simulations: list[dict[str, Any]]) -> None:
    """Where a class is too rare for a bound there is none, so that no class has a false one."""
    found, low = covered(simulations, "pool"), np.stack([row["pool"] for row in simulations])
    bounded = (~np.isnan(low)).sum(axis=0)
    assert (found[bounded >= 10] >= 0.9).all()
    assert np.nanmean(np.where(np.isnan(low), np.nan, [low <= np.stack([r["truth"] for r in simulations])])) >= 0.95
    assert (bounded[:, 0] <= 3).all(), "half a percent of the pool cannot be told from none"
    assert (bounded[:, 2:] >= 0.7 * SIMULATIONS).all(), "a tenth of the pool can"
    assert (np.nanmean(low, axis=0)[:, 3:] > 0.7).all(), "and the bounds of frequent classes say something"


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_the_anchors_mix_makes_bounds_that_do_not_hold(simulations: list[dict[str, Any]]) -> None:
    assert (covered(simulations, "anchor")[0, :2] < 0.5).all()
    truth, pool, anchor = (
        np.stack([row[name] for row in simulations])[:, 0, 0] for name in ("truth", "pool mean", "anchor mean")
    )
    assert np.nanmean(anchor) > 2.5 * truth.mean(), "what the mix of the anchor promises of the rarest class"
    assert np.nanmean(np.abs(pool - truth)) < 0.5 * np.nanmean(np.abs(anchor - truth))


def test_bounds_of_the_whole_and_of_the_shares_hold(simulations: list[dict[str, Any]]) -> None:
    total = np.stack([row["total"] for row in simulations])
    mean, low, _ = (np.stack(part) for part in zip(*(row["pool total"] for row in simulations), strict=True))
    assert ((low <= total).mean(axis=0) >= 0.9).all()
    assert (np.abs(mean - total).mean(axis=0) < 0.03).all()
    true = np.stack([row["true shares"] for row in simulations])
    low, share, high = (np.stack(part) for part in zip(*(row["shares"] for row in simulations), strict=True))
    assert ((low <= true).mean(axis=0) >= 0.9).all()
    assert ((high >= true).mean(axis=0) >= 0.9).all()
    assert (np.abs(share - true).mean(axis=0) < [0.012, 0.02, 0.03, 0.04, 0.04]).all()
    assert (np.median(high, axis=0) < [0.03, 0.06, 0.17, 0.4, 0.7]).all()


def test_the_same_seed_gives_the_same_bits_whatever_the_order_of_the_pool() -> None:
    world, rng = simulate(3), np.random.default_rng(0)
    order = rng.permutation(len(world.pool[1]))
    shuffled = World(world.heldout, (world.pool[0][order], world.pool[1][order]))
    one, other, again = world.estimate(), shuffled.estimate(), world.estimate(seed=1)
    for name in ("share", "low", "high", "unit"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    np.testing.assert_array_equal(one.share, again.share)
    assert (one.weight != again.weight).all()


def test_persons_weigh_as_wholes() -> None:
    world = simulate(4)
    shares, person = world.estimate(), world.heldout[2]
    for one in np.unique(person)[:5]:
        assert np.ptp(shares.weight[:, person == one], axis=1).max() == 0
    alone = World((*world.heldout[:2], np.arange(len(person))), world.pool).estimate()
    assert (alone.share == shares.share).all()


def test_many_held_out_faces_find_the_shares() -> None:
    """The limiting case: what remains is the pool's own chance."""
    rng = np.random.default_rng(5)
    label, pool = rng.choice(3, 30_000), rng.choice(3, 100_000, p=[0.01, 0.19, 0.8])
    scores, pool_scores = (np.eye(3)[one] * 2 + rng.standard_normal((len(one), 3)) for one in (label, pool))
    found = estimate_shares(scores, label, np.arange(30_000), lambda: [pool_scores], level=0.95, seed=0)
    np.testing.assert_allclose(found.share, np.bincount(pool) / len(pool), atol=0.005)
    assert (found.high - found.low < 0.03).all()


def test_a_class_without_held_out_faces_has_no_share() -> None:
    world = simulate(6)
    seen = world.heldout[1] != 1
    scores, label, person = (part[seen] for part in world.heldout)
    found = estimate_shares(
        scores, label, np.unique(person, return_inverse=True)[1], lambda: [world.pool[0]], level=0.9, seed=0
    )
    assert np.isnan([found.share[1], found.low[1], found.high[1]]).all()
    np.testing.assert_allclose(np.nansum(found.share), 1)


def test_solved_shares_by_hand_inside_and_at_the_edge_of_the_simplex() -> None:
    confusion = np.array([[[0.8, 0.1], [0.2, 0.9]]] * 2)
    found = solve_shares(confusion, np.array([[0.8 * 0.3 + 0.1 * 0.7, 0.2 * 0.3 + 0.9 * 0.7], [0.05, 0.95]]))
    np.testing.assert_allclose(found[0], [0.3, 0.7], atol=1e-9)
    np.testing.assert_allclose(found[1], [0, 1], atol=1e-3)


def test_scaling_recovers_odds_that_were_bent() -> None:
    """Scores that are the true log-odds, divided by 4 and shifted, become the odds again (up to a common shift)."""
    rng = np.random.default_rng(7)
    logits = 2 * rng.standard_normal((50_000, 3))
    label = (rng.random(50_000)[:, None] > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    made = fit_scaling(logits / 4 - np.array([0.5, 0, 0.2]), label)
    assert made.scale == pytest.approx(4, rel=0.05)
    np.testing.assert_allclose(made.bias - made.bias[1], [2, 0, 0.8], atol=0.1)
