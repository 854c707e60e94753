"""Independent work in several processes: items and a function in, the same results as one after the other out.

This process takes its share too, since it has loaded already what fresh interpreters must load first; the others
are such (a forked torch may hang on its threads). Each process gets its share of the items at once, so that it reads
its data once; one whose parent is gone, or has failed, ends at its next step.
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
_done: Any = None  # in a worker: the counter that it shares with its parent, …
_stop: Any = None  # … and whether the parent has failed


def spread(
    work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item], *, workers: int, advance: Advance
) -> None:
    """Calls `work` with all items, or in each of `workers` processes with its share; both must be picklable."""
    if workers <= 1 or len(items) <= 1:
        work(items, advance)
        return
    workers = min(workers, len(items))
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Value("b", 0)
    seen = 0

    def told(steps: int) -> None:
        """Steps made here, and those that the others have made since the last look."""
        nonlocal seen
        now = counter.value
        advance(steps + now - seen)
        seen = now

    with ProcessPoolExecutor(workers - 1, mp_context=context, initializer=_begin, initargs=(counter, stop)) as pool:
        left = {pool.submit(_call, work, items[start::workers]) for start in range(1, workers)}
        finished = set()
        try:
            work(items[::workers], told)
            while left:
                ended, left = wait(left, timeout=SECONDS_BETWEEN_LOOKS)
                finished |= ended
                told(0)
        except BaseException:
            stop.value = 1
            raise
    for future in finished:
        try:
            future.result()
        except BrokenProcessPool:
            raise PipelineError(
                "a training process was killed (out of memory?); finished seeds are kept: run again, "
                "with a smaller resources.workers if memory is short"
            ) from None


def _begin(counter: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = counter, stop


def _call(work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item]) -> None:
    parent = multiprocessing.parent_process()

    def advance(steps: int) -> None:
        if _stop.value or (parent is not None and not parent.is_alive()):
            raise SystemExit(1)
        with _done.get_lock():
            _done.value += steps

    work(items, advance)
