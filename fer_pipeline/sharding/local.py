"""Jobs in, their outcomes out as they end, made by processes of this machine: one CPU thread or one GPU each.

The bytes do not depend on the number of workers. Jobs are asked for when a worker is about to need one, at most one
waits for each. Where a worker dies, another takes its place and only the job that it was making is lost; after all
others that job is tried again, alone in a process of its own.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import one_thread, worker_devices
from fer_pipeline.sharding.jobs import DIED, Advance, Begin, Job, Outcome, attempt
from fer_pipeline.sharding.worker import Begun, Worker, start_worker


def spread(
    jobs: Iterable[Job[Any]],
    begin: Begin,
    *,
    store: Path,
    owner: str,
    resources: Resources,
    preload: str,
    advance: Advance,
) -> Iterator[Outcome]:
    """Makes every job's shard in the store; `preload` names the module that workers need, imported once for all."""
    ahead = iter(jobs)
    first = list(itertools.islice(ahead, 2))
    if not first:
        return
    devices = worker_devices(resources)
    everything = itertools.chain(first, ahead)
    if len(devices) == 1 or len(first) < 2:
        yield from _here(everything, begin, devices[0], Store(store, owner=owner), advance)
    else:
        start = partial(start_worker, begin, store=store, owner=owner, preload=preload)
        crew = _Crew(start, devices, resources.retries, advance)
        try:
            yield from crew.make(everything)
        finally:
            crew.stop()


def _here(jobs: Iterable[Job[Any]], begin: Begin, device: str, store: Store, advance: Advance) -> Iterator[Outcome]:
    with one_thread(device):
        maker = begin(device)
        for job in jobs:
            result = attempt(job, maker, store=store, device=device, advance=advance)
            yield Outcome(job, result.fault, result.seconds, result.full)


class _Crew:
    """The workers of one run."""

    def __init__(
        self, start: Callable[[str], Worker], devices: tuple[str, ...], retries: int, advance: Advance
    ) -> None:
        self._start, self._devices, self._retries, self._advance = start, devices, retries, advance
        self._workers: list[Worker] = []
        self._waiting: deque[Job[Any]] = deque()
        self._stillborn = 0  # workers in a row that died before their model was loaded

    def make(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        """All jobs, then those that a worker died of, one at a time."""
        lost: list[Job[Any]] = []
        for found in self._make_together(jobs):
            if isinstance(found, Outcome):
                yield found
            else:
                lost.append(found)
        self.stop()
        for job in lost:
            yield self._make_alone(job)

    def stop(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.process.terminate()  # all at once, so that they end together
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _make_together(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome | Job[Any]]:
        """What became of the jobs as they end, and the jobs that were lost with their worker."""
        more = True
        while True:
            self._give()
            while more and len(self._waiting) < len(self._devices):
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    self._waiting.append(job)
                    self._give()  # at once: to plan the next one may take a while
            if all(worker.job is None for worker in self._workers):
                return
            for connection in wait([worker.connection for worker in self._workers]):
                worker = next(worker for worker in self._workers if worker.connection is connection)
                found = self._hear(worker)
                if found is not None:
                    yield found

    def _give(self) -> None:
        """A job to each idle worker, and a worker to each idle device."""
        for worker in self._workers:
            if worker.job is None and self._waiting:
                worker.give(self._waiting.popleft())
        free = Counter(self._devices) - Counter(worker.device for worker in self._workers)
        for device in free.elements():
            if self._waiting:
                self._workers.append(self._start(device))
                self._workers[-1].give(self._waiting.popleft())

    def _hear(self, worker: Worker) -> Outcome | Job[Any] | None:
        """One word of a worker, or its last: an outcome, the job that is lost with it, or nothing."""
        word = worker.read()
        if word is None:
            return self._bury(worker)
        if isinstance(word, Begun):
            if word.fault is not None:
                raise word.fault
            worker.begun, self._stillborn = True, 0
        elif isinstance(word, int):
            worker.told += word
            self._advance(word)
        else:
            assert worker.job is not None
            job, worker.job = worker.job, None
            return Outcome(job, word.fault, word.seconds, word.full)
        return None

    def _bury(self, worker: Worker) -> Job[Any] | None:
        self._workers.remove(worker)
        worker.stop()
        if worker.begun:
            self._advance(-worker.told)
            return worker.job
        self._stillborn += 1
        if self._stillborn > self._retries:
            raise PipelineError(
                f"workers die while they load what they need ({self._stillborn} one after the other; out of memory?); "
                f"finished shards are kept, run again with fewer resources.workers"
            )
        if worker.job is not None:
            self._waiting.appendleft(worker.job)
        return None

    def _make_alone(self, job: Job[Any]) -> Outcome:
        """One job in a process of its own, tried `retries` times."""
        for _ in range(self._retries):
            self._waiting.append(job)
            for found in self._make_together(iter(())):
                if isinstance(found, Outcome):
                    self.stop()
                    return found
        self._advance(job.items)
        return Outcome(job, DIED, 0.0)
