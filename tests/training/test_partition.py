"""Parts of a labelled set: nobody in two parts, classes divided as asked, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_pipeline.training.sets import FIT, partition

SHARES = {"validation": 0.1, "heldout": 0.2}


def parts_of(labels, subjects, *, seed: int = 0, num_classes: int = 3) -> np.ndarray:
    return partition(
        np.array(labels), np.array(subjects, dtype=object), shares=SHARES, seed=seed, num_classes=num_classes
    )


def test_without_subjects_every_class_is_divided_exactly() -> None:
    labels = [0] * 100 + [1] * 30 + [2] * 10
    parts = parts_of(labels, [""] * 140)
    for label, count in enumerate((100, 30, 10)):
        own = parts[np.array(labels) == label]
        assert (own == "validation").sum() == count // 10
        assert (own == "heldout").sum() == count // 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_subjects_move_as_a_whole_and_fit_keeps_every_class(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(5, 120))
    labels = random.integers(0, 4, count)
    subjects = np.array([f"p{index}" if index else "" for index in random.integers(0, 30, count)], dtype=object)
    parts = partition(labels, subjects, shares=SHARES, seed=seed, num_classes=4)
    for subject in set(subjects) - {""}:
        assert len(set(parts[subjects == subject])) == 1
    assert set(labels[parts == FIT]) == set(labels)


def test_shares_come_near_with_subjects() -> None:
    random = np.random.default_rng(1)
    labels = random.choice(3, 900, p=[0.6, 0.3, 0.1])
    subjects = [f"p{index // 3}" for index in range(900)]
    parts = parts_of(labels, subjects)
    for label in range(3):
        own = parts[labels == label]
        assert (own == "validation").mean() == pytest.approx(0.1, abs=0.03)
        assert (own == "heldout").mean() == pytest.approx(0.2, abs=0.03)


def test_a_seed_is_a_partition() -> None:
    labels, subjects = [0, 1, 2] * 40, [f"p{index // 4}" for index in range(120)]
    first, again, other = (parts_of(labels, subjects, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_part_does_not_depend_on_those_after_it() -> None:
    """So the labeller, which holds faces out besides, and the final models have the same validation faces."""
    labels, subjects = np.arange(120) % 3, np.array([f"p{index // 4}" for index in range(120)], dtype=object)
    alone = partition(labels, subjects, shares={"validation": 0.1}, seed=4, num_classes=3)
    beside = partition(labels, subjects, shares=SHARES, seed=4, num_classes=3)
    assert ((alone == "validation") == (beside == "validation")).all()
    assert (beside == "heldout").any()


def test_nothing_set_aside_is_all_to_train_on() -> None:
    parts = partition(
        np.array([0, 1]), np.array(["", ""], dtype=object), shares={"validation": 0.0}, seed=0, num_classes=2
    )
    assert (parts == FIT).all()
