"""Streams of rows against a plain walk through permutations."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fer_pipeline.core.seeds import derive
from fer_pipeline.training.batches import Stream, balanced_rows, endless_rows


def walk(seed: int, count: int, number: int) -> list[int]:
    rows: list[int] = []
    turn = 0
    while len(rows) < number:
        rows += np.random.default_rng(derive(seed, turn)).permutation(count).tolist()
        turn += 1
    return rows[:number]


@given(st.integers(0, 99), st.integers(1, 30), st.integers(0, 200), st.integers(1, 50))
def test_any_window_is_a_window_of_the_walk(seed: int, count: int, start: int, number: int) -> None:
    found = endless_rows(seed, count, start=start, number=number).tolist()
    assert found == walk(seed, count, start + number)[start:]


def test_every_turn_holds_every_row_once() -> None:
    rows = endless_rows(0, 7, start=0, number=70).reshape(10, 7)
    assert (np.sort(rows, 1) == np.arange(7)).all()
    assert len({tuple(row) for row in rows}) > 1


def test_balanced_rows_give_every_class_alike_and_every_member_in_turn() -> None:
    members = (np.array([0]), np.array([], dtype=np.int64), np.array([5, 6, 7]))
    rows = balanced_rows(3, members, start=0, number=60)
    counts = Counter(rows.tolist())
    assert counts == {0: 30, 5: 10, 6: 10, 7: 10}
    parts = [balanced_rows(3, members, start=start, number=7) for start in range(0, 49, 7)]
    assert np.concatenate(parts).tolist() == rows[:49].tolist()


@pytest.mark.parametrize("balanced", [False, True])
def test_batches_are_functions_of_the_step(toy, balanced: bool) -> None:
    images = toy(20, 0)
    stream = Stream(images, 8, seed=1, balanced=balanced, num_classes=3)
    later = stream.batch(9, torch.device("cpu"))
    for step in range(9):
        stream.batch(step, torch.device("cpu"))
    again = stream.batch(9, torch.device("cpu"))
    assert torch.equal(later.rows, again.rows)
    assert torch.equal(later.images, images.images[later.rows])
    assert torch.equal(later.labels, images.labels[later.rows])


def test_size_zero_is_the_whole_set_every_time(toy) -> None:
    stream = Stream(toy(5, 0), 0, seed=1)
    assert [stream.rows(step).tolist() for step in (0, 7)] == [[0, 1, 2, 3, 4]] * 2
