"""Give each of several fresh processes its share of independent items at once, so that it reads its data once.

This process takes the first share, since it has loaded already what fresh interpreters must load first (a forked torch
may hang on its threads). A process whose parent is gone, or has failed, ends at its next step. No torch here: a process
loads what its work needs and no more.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar, runtime_checkable

from fer_pipeline.core.errors import PipelineError

Item = TypeVar("Item")


@runtime_checkable
class Advance(Protocol):
    """Counts finished steps; those of an `earlier` run say nothing about the rate.

    `planned` is added to the total: how many more steps come than was known, or fewer.
    """

    def __call__(self, steps: int, /, *, earlier: bool = False, planned: int = 0) -> None: ...


def ignore_steps(steps: int, /, *, earlier: bool = False, planned: int = 0) -> None:
    """Counts nothing."""


SECONDS_BETWEEN_LOOKS = 0.5
# In a process of `run_shares`: steps made, of an earlier run and planned, and whether its parent has failed.
_shared: list[Any] = []


def run_shares(
    work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item], *, workers: int, advance: Advance
) -> None:
    """Calls `work` with all items, or in each of `workers` processes with its share; both must be picklable."""
    workers = min(workers, len(items))
    if workers <= 1:
        work(items, advance)
        return
    context = multiprocessing.get_context("spawn")
    counters, stop = context.Array("q", 3), context.Event()
    seen = [0, 0, 0]

    def advance_all(steps: int, /, *, earlier: bool = False, planned: int = 0) -> None:
        nonlocal seen
        now = counters[:]
        advance(now[0] - seen[0] + (0 if earlier else steps), planned=now[2] - seen[2] + planned)
        if now[1] > seen[1]:
            advance(now[1] - seen[1], earlier=True)
        if earlier:
            advance(steps, earlier=True)
        seen = now

    with ProcessPoolExecutor(workers - 1, context, _begin, (counters, stop)) as pool:
        futures = [pool.submit(_run_share, work, items[start::workers]) for start in range(1, workers)]
        try:
            work(items[::workers], advance_all)
            while wait(futures, timeout=SECONDS_BETWEEN_LOOKS).not_done:
                advance_all(0)
            advance_all(0)
        except BaseException:
            stop.set()
            raise
    try:
        for future in futures:
            future.result()
    except BrokenProcessPool:
        raise PipelineError(
            "a training process was killed (out of memory?); finished seeds are kept: run again, "
            "with a smaller resources.workers if memory is short"
        ) from None


def _begin(*shared: Any) -> None:
    _shared.extend(shared)


def _run_share(work: Callable[[Sequence[Item], Advance], None], items: Sequence[Item]) -> None:
    counters, stop = _shared

    def advance(steps: int, /, *, earlier: bool = False, planned: int = 0) -> None:
        if stop.is_set():
            raise SystemExit(1)
        end_with_parent()
        with counters.get_lock():
            counters[earlier] += steps
            counters[2] += planned

    work(items, advance)


def end_with_parent() -> None:
    """Ends this process if it was started by one that is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)
