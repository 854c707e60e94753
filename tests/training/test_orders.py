"""Orders of rows against plain walks, and what each promises of its turns."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_pipeline.core.seeds import derive
from fer_pipeline.training.batches import Balanced, Blocked, Order, Permuted


def walk(seed: int, count: int, number: int) -> list[int]:
    rows: list[int] = []
    turn = 0
    while len(rows) < number:
        rows += np.random.default_rng(derive(seed, turn)).permutation(count).tolist()
        turn += 1
    return rows[:number]


def walk_blocks(seed: int, blocks: list[int], together: int, number: int) -> list[int]:
    """Blocks in the order of the turn, so many at a time in one heap, each heap shuffled."""
    names = sorted(set(blocks))
    rows: list[int] = []
    turn = 0
    while len(rows) < number:
        order = np.random.default_rng(derive(seed, turn)).permutation(len(names)).tolist()
        for part, start in enumerate(range(0, len(order), together)):
            heap = [row for index in order[start : start + together] for row in _rows_of(blocks, names[index])]
            shuffled = np.random.default_rng(derive(seed, turn, "part", part)).permutation(np.array(heap))
            rows += shuffled.tolist()
        turn += 1
    return rows[:number]


def _rows_of(blocks: list[int], name: int) -> list[int]:
    return [row for row, block in enumerate(blocks) if block == name]


@given(st.integers(0, 99), st.integers(1, 30), st.integers(0, 200), st.integers(1, 50))
def test_any_window_of_permutations_is_a_window_of_the_walk(seed: int, count: int, start: int, number: int) -> None:
    found = Permuted(seed, count).rows(start, number).tolist()
    assert found == walk(seed, count, start + number)[start:]


@settings(deadline=None)
@given(
    st.integers(0, 99), st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 4), st.integers(0, 90),
    st.integers(1, 40),
)  # fmt: skip
def test_any_window_of_blocks_is_a_window_of_the_walk(
    seed: int, blocks: list[int], together: int, start: int, number: int
) -> None:
    found = Blocked(seed, np.array(blocks), together=together).rows(start, number).tolist()
    assert found == walk_blocks(seed, blocks, together, start + number)[start:]


@pytest.mark.parametrize("order", [Permuted(0, 12), Blocked(0, np.arange(12) // 3, together=2)])
def test_every_turn_holds_every_row_once_and_turns_differ(order: Order) -> None:
    rows = order.rows(0, 120).reshape(10, 12)
    assert (np.sort(rows, 1) == np.arange(12)).all()
    assert len({tuple(row) for row in rows}) == 10


def test_blocks_are_met_so_many_at_a_time_in_a_new_company_each_turn() -> None:
    order = Blocked(4, np.arange(400) // 20, together=5)
    company = []
    for turn in range(3):
        heaps = [set((order.rows(turn * 400 + part * 100, 100) // 20).tolist()) for part in range(4)]
        assert all(len(heap) == 5 for heap in heaps)
        assert set.union(*heaps) == set(range(20))
        company.append(sorted(sorted(heap) for heap in heaps))
    assert company[0] != company[1] != company[2]
    inside = order.rows(0, 100)
    assert len(set((inside[:20] // 20).tolist())) > 1, "rows of the heap are shuffled, not blocks alone"


def balanced(members: list[np.ndarray], *, blocks: np.ndarray | None = None) -> Balanced:
    seeds = [derive(3, "class", index) for index in range(len(members))]
    own: list[Order] = [
        Permuted(seed, len(rows)) if blocks is None else Blocked(seed, blocks[rows], together=1)
        for seed, rows in zip(seeds, members, strict=True)
    ]
    return Balanced(3, members, own)


@pytest.mark.parametrize("blocks", [None, np.arange(8) // 2])
def test_balanced_rows_give_every_class_alike_and_every_member_in_turn(blocks) -> None:
    members = [np.array([0]), np.array([5, 6, 7])]
    order = balanced(members, blocks=blocks)
    rows = order.rows(0, 60)
    assert Counter(rows.tolist()) == {0: 30, 5: 10, 6: 10, 7: 10}
    parts = [order.rows(start, 7) for start in range(0, 49, 7)]
    assert np.concatenate(parts).tolist() == rows[:49].tolist()
    assert balanced(members, blocks=blocks).rows(21, 9).tolist() == rows[21:30].tolist(), "no state is needed"
