"""Jobs in, each with the line of its failure (or None) out as they end, made by processes of one thread each.

Workers come from a fork server that has imported what they need once; the bytes do not depend on their number. Where a
worker dies, the jobs that were under way are tried again one by one, each in a process of its own, so that only the
one that kills it is lost. A worker whose parent is gone ends itself.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
Begin = Callable[[], Callable[[Job], str | None]]

DIED = "the process that made it died (out of memory?)"

_work: Callable[[Any], str | None] | None = None


def spread(jobs: Iterable[Job], *, begin: Begin[Job], workers: int, preload: str) -> Iterator[tuple[Job, str | None]]:
    """Runs every job; `begin` is called once in each process and gives the function that makes a job.

    `preload` names the module that workers need.
    """
    ahead = iter(jobs)
    first = list(itertools.islice(ahead, 2))
    if workers == 1 or len(first) < 2:
        yield from _here(itertools.chain(first, ahead), begin)
    else:
        yield from _elsewhere(itertools.chain(first, ahead), begin, workers, preload)


def _here(jobs: Iterable[Job], begin: Begin[Job]) -> Iterator[tuple[Job, str | None]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order as in a worker
    try:
        work = None
        for job in jobs:
            work = work or begin()
            yield job, work(job)
    finally:
        torch.set_num_threads(threads)


def _elsewhere(jobs: Iterator[Job], begin: Begin[Job], workers: int, preload: str) -> Iterator[tuple[Job, str | None]]:
    suspects: list[Job] = []
    while True:
        pending: dict[Future[str | None], Job] = {}
        with _pool(workers, begin, preload) as pool:
            broken = False
            while not broken:
                while not broken and len(pending) < 2 * workers and (job := next(jobs, None)) is not None:
                    try:
                        pending[pool.submit(_call, job)] = job
                    except BrokenProcessPool:  # a worker died since the last look
                        suspects.append(job)
                        broken = True
                if not pending:
                    break
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    job = pending.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        broken = True
                        suspects.append(job)
                    else:
                        yield job, future.result()
            suspects += pending.values()
        if not broken:
            break
    for job in suspects:
        with _pool(1, begin, preload) as pool:
            try:
                yield job, pool.submit(_call, job).result()
            except BrokenProcessPool:
                yield job, DIED


def _pool(workers: int, begin: Begin[Any], preload: str) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(begin,))


def _begin(begin: Begin[Any]) -> None:
    global _work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _work = begin()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _call(job: Any) -> str | None:
    assert _work is not None
    return _work(job)
