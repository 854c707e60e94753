"""States played backwards: each in order, never too many held, and no more steps than the known optimum."""

import math
import weakref

import pytest

from fer_pipeline.distillation.unrolled import best_split, iter_reversed


class State:
    """A number that counts how many of its kind are alive."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 30])
@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5, 40])
def test_every_state_comes_back_in_reverse(total: int, checkpoints: int) -> None:
    steps = 0
    alive: weakref.WeakSet[State] = weakref.WeakSet()

    def advance(state: State, step: int) -> State:
        nonlocal steps
        assert state.number == step
        steps += 1
        following = State(step + 1)
        alive.add(following)
        # those held, without the start, the one stepped from and the one stepped to
        assert len(alive) <= checkpoints + 1
        return following

    seen = []
    for step, state in iter_reversed(advance, State(0), total, checkpoints=checkpoints):
        assert state.number == step
        seen.append(step)
        del state
    assert seen == list(reversed(range(total)))
    assert steps == best_split(total, checkpoints - 1)[0]


def test_enough_room_repeats_nothing() -> None:
    assert best_split(30, 29)[0] == 29
    assert best_split(30, 60)[0] == 29


def test_no_room_starts_over_each_time() -> None:
    assert best_split(30, 0)[0] == 29 * 30 // 2


@pytest.mark.parametrize(
    ("checkpoints", "repeats", "longest"), [(1, 3, 4), (2, 2, 6), (3, 2, 10), (3, 3, 20), (4, 3, 35), (8, 2, 45)]
)
def test_the_known_optimum_is_reached(checkpoints: int, repeats: int, longest: int) -> None:
    """Griewank & Walther, theorem 6.1: T = binomial(s + r, s) steps cost r T - binomial(s + r, r - 1)."""
    assert longest == math.comb(checkpoints + repeats, checkpoints)
    assert best_split(longest, checkpoints - 1)[0] == repeats * longest - math.comb(checkpoints + repeats, repeats - 1)
