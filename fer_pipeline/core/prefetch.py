"""Map a function over items in order, with results computed ahead of their use by threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

RESULTS_PER_THREAD = 2  # computed ahead


def prefetch(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    threads: int,
    ahead: int | None = None,
    initializer: Callable[[], None] | None = None,
) -> Generator[Result, None, None]:
    """Yields `function` of every item in order; an error is raised where its item's result is due.

    At most `ahead` results (two for each thread where it is None) are waiting or being computed besides the one that is
    due. Without threads each result is computed when it is due. `initializer` is called in every thread. To be closed
    when it is left early: items that have not begun are then dropped and the threads end.
    """
    if not threads:
        yield from map(function, items)
        return
    coming = iter(items)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch", initializer=initializer) as pool:
        try:
            count = RESULTS_PER_THREAD * threads if ahead is None else ahead
            pending.extend(pool.submit(function, item) for item in islice(coming, count))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in islice(coming, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
