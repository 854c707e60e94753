"""Every protocol: disjoint persons, everything tested as often as promised, the same folds from the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.evaluation.protocols import hold_out, k_fold, leave_one_subject_out

people = st.lists(st.sampled_from(["", *(f"p{i}" for i in range(9))]), min_size=12, max_size=60)


def groups(subjects: list[str], index: np.ndarray) -> set[str]:
    return {subjects[i] or f"#{i}" for i in index}


@given(people, st.integers(0, 3))
def test_persons_never_stand_on_both_sides(subjects: list[str], seed: int) -> None:
    if len(groups(subjects, np.arange(len(subjects)))) < 3:
        subjects = ["a", "b", "c", *subjects]
    for folds in (
        list(hold_out(subjects, share=0.3, seed=seed)),
        list(k_fold(subjects, folds=3, seed=seed)),
        list(leave_one_subject_out(subjects)),
    ):
        for train, test in folds:
            assert not groups(subjects, train) & groups(subjects, test)
            assert sorted([*train, *test]) == list(range(len(subjects)))
            assert len(train)
            assert len(test)


@given(people, st.integers(0, 3))
def test_k_fold_tests_everything_once_in_even_folds(subjects: list[str], seed: int) -> None:
    subjects = ["a", "b", "c", "d", *subjects]
    folds = list(k_fold(subjects, folds=4, seed=seed))
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(subjects)))
    sizes = [len(groups(subjects, test)) for _, test in folds]
    assert max(sizes) - min(sizes) <= 1


def test_leave_one_subject_out_is_one_fold_a_person() -> None:
    folds = [test.tolist() for _, test in leave_one_subject_out(["b", "a", "b", "", ""])]
    assert folds == [[0, 2], [1], [3], [4]]


def test_folds_depend_on_the_seed_alone() -> None:
    subjects = [f"p{i}" for i in range(20)]

    def first(seed: int) -> list[int]:
        return next(k_fold(subjects, folds=5, seed=seed))[1].tolist()

    assert first(1) == first(1)
    assert len({tuple(first(seed)) for seed in range(6)}) > 1


def test_hold_out_holds_out_about_the_share() -> None:
    [(train, test)] = hold_out([f"p{i}" for i in range(100)], share=0.2, seed=0)
    assert (len(train), len(test)) == (80, 20)


def test_impossible_protocols_say_why() -> None:
    with pytest.raises(ConfigError, match="at least 2 folds, found 1"):
        next(k_fold(["a", "b"], folds=1, seed=0))
    with pytest.raises(DataError, match="at least 10 subjects, found 2"):
        next(k_fold(["a", "b", "a"], folds=10, seed=0))
    with pytest.raises(DataError, match="at least 2 subjects, found 1"):
        next(leave_one_subject_out(["a", "a"]))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        next(hold_out(["a", "b"], share=1.0, seed=0))
