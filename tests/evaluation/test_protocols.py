"""Every protocol: disjoint persons, everything tested as often as promised, the same folds from the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.folds import HoldOut, KFold, LeaveOneOut
from fer_pipeline.evaluation.protocols import Divided, is_tested, number_persons

people = st.lists(st.sampled_from([f"p{i}" for i in range(9)]), min_size=12, max_size=60)
K_FOLD = KFold(name="k_fold", folds=4)
ALL = (
    K_FOLD,
    KFold(name="k_fold", folds=4, groups="steps"),
    HoldOut(name="hold_out", test=0.3, folds=4),
    HoldOut(name="hold_out", test=0.3, folds=4, seed=1),
)


def folds(protocol: Divided, subjects: list[str], labels: list[int] | None = None) -> list[np.ndarray]:
    numbers = np.zeros(len(subjects), np.int64) if labels is None else np.asarray(labels)
    return [is_tested(protocol, subjects, numbers, fold=fold + 1) for fold in range(protocol.folds)]


def groups(subjects: list[str], chosen: np.ndarray) -> set[str]:
    return {subjects[i] or f"#{i}" for i in np.flatnonzero(chosen)}


@given(people, st.sampled_from(ALL))
def test_persons_never_stand_on_both_sides(subjects: list[str], protocol: Divided) -> None:
    subjects = ["a", "b", "c", "d", *subjects]
    for tested in folds(protocol, subjects):
        assert not groups(subjects, ~tested) & groups(subjects, tested)
        assert tested.any()
        assert not tested.all()


@given(people, st.sampled_from(["blocks", "steps"]))
def test_k_fold_tests_everything_once_in_even_folds(subjects: list[str], kind: str) -> None:
    subjects = ["a", "b", "c", "d", *subjects]
    found = folds(KFold.model_validate({"name": "k_fold", "folds": 4, "groups": kind}), subjects)
    assert (np.sum(found, axis=0) == 1).all()
    sizes = [len(groups(subjects, tested)) for tested in found]
    assert max(sizes) - min(sizes) <= 1


def test_groups_are_of_ascending_persons() -> None:
    """Five persons in two groups, in an order in which none was read, S10 after S9."""
    subjects = ["S10", "S2", "S9", "S2", "S1", "S3"]
    first, second = folds(KFold(name="k_fold", folds=2), subjects)
    assert groups(subjects, first) == {"S1", "S2", "S3"}
    assert groups(subjects, second) == {"S9", "S10"}
    first, second = folds(KFold(name="k_fold", folds=2, groups="steps"), subjects)
    assert groups(subjects, first) == {"S1", "S3", "S10"}
    assert groups(subjects, second) == {"S2", "S9"}


def test_leave_one_out_is_one_fold_a_person() -> None:
    found = folds(LeaveOneOut(name="leave_one_out", folds=4), ["b", "a", "b", "c", "d"])
    assert [np.flatnonzero(tested).tolist() for tested in found] == [[1], [0, 2], [3], [4]]


def test_pictures_are_drawn_by_class() -> None:
    """A fifth of every class by hand: 2 of 10, 4 of 20 and, of 7, 1 (1.4 rounded)."""
    labels = [0] * 10 + [1] * 20 + [2] * 7
    protocol = HoldOut(name="hold_out", by="picture", folds=10)
    found = folds(protocol, [""] * len(labels), labels)
    assert {tuple(np.bincount(np.asarray(labels)[tested])) for tested in found} == {(2, 4, 1)}
    assert len({tested.tobytes() for tested in found}) == 10
    assert (np.sum(found, axis=0) < 10).all()


def test_a_hold_out_of_persons_is_near_the_share_in_every_class() -> None:
    """As CK+ has them: 118 persons, each with some of seven classes, those with few pictures in them too."""
    rng, often = np.random.default_rng(0), (0.38, 0.15, 0.5, 0.2, 0.6, 0.24, 0.7)
    pairs = [(f"S{i:03d}", k) for i in range(118) for k, share in enumerate(often) if rng.random() < share]
    labels = np.asarray([k for _, k in pairs])
    for tested in folds(HoldOut(name="hold_out"), [name for name, _ in pairs], labels.tolist()):
        shares = np.bincount(labels[tested], minlength=7) / np.bincount(labels, minlength=7)
        assert np.abs(shares - 0.2).max() < 0.09


def test_folds_depend_on_the_seed_alone() -> None:
    subjects = [f"p{i}" for i in range(20)]
    order = np.random.default_rng(0).permutation(20)

    def first(seed: int) -> set[str]:
        protocol = HoldOut(name="hold_out", seed=seed)
        shuffled = [subjects[i] for i in order]
        again = groups(shuffled, folds(protocol, shuffled)[0])
        assert groups(subjects, folds(protocol, subjects)[0]) == again  # in whatever order they are read
        return again

    assert len({frozenset(first(seed)) for seed in range(6)}) > 1


def test_what_has_no_class_divides_nothing() -> None:
    """A person without any class is in no group and is trained on; a sample without one goes with its person."""
    subjects, labels = ["a", "b", "c", "d", "e", "b"], [-1, 0, 0, 0, 0, -1]
    first, second = folds(KFold(name="k_fold", folds=2), subjects, labels)
    assert groups(subjects, first) == {"b", "c"}
    assert groups(subjects, second) == {"d", "e"}
    assert first[5]


@pytest.mark.parametrize(
    ("protocol", "subjects", "said"),
    [
        (KFold(name="k_fold"), ["a", "b", "a"], "2 persons have a class, too few for protocol.folds 10"),
        (LeaveOneOut(name="leave_one_out"), ["a", "b"], "2 persons have a class, but protocol.folds is 10"),
        (HoldOut(name="hold_out"), ["a", "a"], "fold 1 of the protocol hold_out has nothing to test"),
        (HoldOut(name="hold_out"), ["", ""], "no sample names its person, whom hold_out keeps on one side"),
        (
            K_FOLD,
            ["a", "b", "c", "d", ""],
            "1 of 5 labelled samples do not name their person, whom k_fold keeps on one side",
        ),
        (K_FOLD, [""] * 9, r"draw pictures: \{name: hold_out, by: picture\}"),
    ],
)
def test_impossible_protocols_say_why(protocol: Divided, subjects: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        is_tested(protocol, subjects, np.zeros(len(subjects), np.int64))


def test_numbers_in_names_are_numbers() -> None:
    assert number_persons(["m10", "m9", "", "F2", "m09", "٣"]).tolist() == [3, 2, 7, 0, 1, 4]
    assert number_persons(["9" * 5000, "8" * 5000, "1" * 5001]).tolist() == [1, 0, 2], "longer than Python's integers"


def test_a_sample_without_class_may_have_no_name() -> None:
    first, second = folds(KFold(name="k_fold", folds=2), ["a", "b", ""], [0, 0, -1])
    assert (first.tolist(), second.tolist()) == ([True, False, False], [False, True, False])
