"""Play a sequence of states backwards while only a few of them are in memory.

Source: Griewank & Walther, Revolve (ACM TOMS 26, 2000): with s states in memory, T steps are reversed with the fewest
repeated steps where cost(T, s) = min over j of j + cost(T - j, s - 1) + cost(j, s). Difference: the minimum is
searched, not taken from the closed form, since T is small here.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeVar

State = TypeVar("State")


def iter_reversed(
    advance: Callable[[State, int], State], start: State, total: int, *, checkpoints: int
) -> Iterator[tuple[int, State]]:
    """Yields (t, state before step t) for t = total - 1 .. 0, where `advance(state, t)` takes step t from a state.

    At most `checkpoints` states, the start among them, are held at a time, and one more while it is used.
    """
    stored = [(0, start)]
    for step in reversed(range(total)):
        position, state = stored[-1]
        while position < step:
            free = checkpoints - len(stored)
            target = position + best_split(step - position + 1, free)[1] if free > 0 else step
            for number in range(position, target):
                state = advance(state, number)
            position = target
            if free > 0:
                stored.append((position, state))
        yield step, state
        if stored[-1][0] == step:
            stored.pop()


@cache
def best_split(steps: int, free: int) -> tuple[int, int]:
    """Returns the fewest steps that give back `steps` states with `free` checkpoints beside the first, and the next."""
    if steps == 1:
        return 0, 0
    if free == 0:
        return steps * (steps - 1) // 2, 0
    return min((j + best_split(steps - j, free - 1)[0] + best_split(j, free)[0], j) for j in range(1, steps))
