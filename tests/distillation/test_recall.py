"""Walks played backwards: every place in order, never too many held, and no more steps than the known optimum."""

import math
import weakref

import pytest

from fer_pipeline.distillation.recall import best_split, recalled


class Place:
    """A number that counts how many of its kind are alive."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("total", [1, 2, 3, 7, 10, 30])
@pytest.mark.parametrize("kept", [1, 2, 3, 5, 40])
def test_every_place_comes_back_in_reverse(total: int, kept: int) -> None:
    steps = 0
    alive: weakref.WeakSet[Place] = weakref.WeakSet()

    def advance(place: Place, step: int) -> Place:
        nonlocal steps
        assert place.number == step
        steps += 1
        following = Place(step + 1)
        alive.add(following)
        assert len(alive) <= kept + 1  # those held, without the start, the one stepped from and the one stepped to
        return following

    seen = []
    for step, place in recalled(advance, Place(0), total, kept=kept):
        assert place.number == step
        seen.append(step)
        del place
    assert seen == list(reversed(range(total)))
    assert steps == best_split(total, kept - 1)[0]


def test_enough_room_repeats_nothing() -> None:
    assert best_split(30, 29)[0] == 29
    assert best_split(30, 60)[0] == 29


def test_no_room_starts_over_each_time() -> None:
    assert best_split(30, 0)[0] == 29 * 30 // 2


@pytest.mark.parametrize(
    ("kept", "repeats", "longest"), [(1, 3, 4), (2, 2, 6), (3, 2, 10), (3, 3, 20), (4, 3, 35), (8, 2, 45)]
)
def test_the_known_optimum_is_reached(kept: int, repeats: int, longest: int) -> None:
    """Griewank & Walther, theorem 6.1: T = binomial(s + r, s) steps cost r T - binomial(s + r, r - 1)."""
    assert longest == math.comb(kept + repeats, kept)
    assert best_split(longest, kept - 1)[0] == repeats * longest - math.comb(kept + repeats, repeats - 1)
