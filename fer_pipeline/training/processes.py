"""Independent work in several processes: items and a function in, the same results as one after the other out.

A pool of fresh interpreters (a forked torch may hang on its threads). Each process gets its share of the items
at once, so that it reads its data once; a process whose parent is gone ends at its next step.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from fer_pipeline.core.errors import PipelineError

Item = TypeVar("Item")
Advance = Callable[[int], None]

SECONDS_BETWEEN_LOOKS = 0.5
_done: Any = None  # in a worker: the counter that it shares with its parent


def spread(
    work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item], *, workers: int, advance: Advance
) -> None:
    """Calls `work` with all items, or in each of `workers` processes with its share; both must be picklable."""
    if workers <= 1 or len(items) <= 1:
        work(items, advance)
        return
    workers = min(workers, len(items))
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(counter,)) as pool:
        left = {pool.submit(_call, work, items[start::workers]) for start in range(workers)}
        finished = set()
        while left:
            ended, left = wait(left, timeout=SECONDS_BETWEEN_LOOKS)
            finished |= ended
            advance(counter.value - seen)
            seen = counter.value
    for future in finished:
        try:
            future.result()
        except BrokenProcessPool:
            raise PipelineError(
                "a training process was killed (out of memory?); finished seeds are kept: run again, "
                "with a smaller resources.workers if memory is short"
            ) from None


def _begin(counter: Any) -> None:
    global _done
    _done = counter


def _call(work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item]) -> None:
    parent = multiprocessing.parent_process()

    def advance(steps: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit(1)
        with _done.get_lock():
            _done.value += steps

    work(items, advance)
