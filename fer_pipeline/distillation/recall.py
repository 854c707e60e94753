"""A walk played backwards with few places to keep: a step function and its start in, the places in reverse order out.

Source: Griewank & Walther, Revolve (ACM TOMS 26, 2000): with s places kept, a walk of T steps is reversed with the
fewest repeated steps where cost(T, s) = min over j of j + cost(T - j, s - 1) + cost(j, s). Difference:
the minimum is searched, not taken from the closed form, since T is small here.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeVar

Place = TypeVar("Place")


def recalled(
    advance: Callable[[Place, int], Place], start: Place, total: int, *, kept: int
) -> Iterator[tuple[int, Place]]:
    """Yields (t, place before step t) for t = total - 1 .. 0, where `advance(place, t)` takes step t from a place.

    At most `kept` places, the start among them, are held at a time, and one more while it is used.
    """
    held = [(0, start)]
    for step in reversed(range(total)):
        position, place = held[-1]
        while position < step:
            free = kept - len(held)
            target = position + best_split(step - position + 1, free)[1] if free > 0 else step
            for number in range(position, target):
                place = advance(place, number)
            position = target
            if free > 0:
                held.append((position, place))
        yield step, place
        if held[-1][0] == step:
            held.pop()


@cache
def best_split(steps: int, free: int) -> tuple[int, int]:
    """The fewest steps that give back `steps` places with `free` kept beside the first, and where to keep the next."""
    if steps == 1:
        return 0, 0
    if free == 0:
        return steps * (steps - 1) // 2, 0
    return min((j + best_split(steps - j, free - 1)[0] + best_split(j, free)[0], j) for j in range(1, steps))
