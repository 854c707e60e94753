"""Make shards in worker processes of this machine: one CPU thread or one GPU each.

The bytes do not depend on the number of workers. Jobs are taken when a worker is about to need one; at most one waits
for each worker. When a worker dies, another takes its place and only the job that it was making is lost; that job is
tried again after all others, alone in a process of its own. A process pool of the standard library would lose all jobs
with one worker.
"""

import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import ONE_THREAD, environment, one_thread, worker_devices
from fer_pipeline.sharding.jobs import WORKER_DIED, Advance, Job, Outcome, Setup, attempt

SECONDS_BETWEEN_REPORTS = 0.2  # of progress: every message wakes the parent
SECONDS_TO_STOP = 5.0


def run_jobs(
    jobs: Iterable[Job[Any]], setup: Setup, *, store: Store, resources: Resources, preload: str, advance: Advance
) -> Iterator[Outcome]:
    """Makes every job's shard and yields the outcomes as they come; a lone worker is this process itself.

    `preload` names the module that workers need, which is imported once for all. An error of `setup` is raised.
    """
    coming = iter(jobs)
    first = list(itertools.islice(coming, 2))
    if not first:
        return
    devices = worker_devices(resources)
    everything = itertools.chain(first, coming)
    if len(devices) == 1 or len(first) < 2:
        with one_thread(devices[0]):
            maker = setup(devices[0])
            for job in everything:
                yield replace(attempt(job, maker, store=store, device=devices[0], advance=advance), job=job)
        return
    pool = _WorkerPool(partial(Worker, setup, store=store, preload=preload), devices, resources.retries, advance)
    try:
        yield from pool.run(everything)
    finally:
        pool.stop()


class Worker:
    """A worker process as its parent sees it: the job that it is making and the items of it that it has reported."""

    def __init__(self, setup: Setup, device: str, *, store: Store, preload: str) -> None:
        self.device = device
        self.ready = False  # the model is loaded
        self.job: Job[Any] | None = None
        self.reported = 0
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
        self.connection, theirs = context.Pipe()
        with environment(ONE_THREAD):
            self.process = context.Process(target=_serve, args=(theirs, setup, device, store))
            self.process.start()
        theirs.close()

    def assign(self, job: Job[Any]) -> None:
        """Sends the next job; that a worker has just died is noticed when it is read from."""
        self.job, self.reported = job, 0
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(job)

    def stop(self) -> None:
        """Ends the worker, by SIGTERM first, which leaves no temporary files."""
        self.process.terminate()
        self.process.join(SECONDS_TO_STOP)
        self.process.kill()
        self.process.join()
        self.connection.close()


class _WorkerPool:
    """The workers of one run, at most one a device."""

    def __init__(
        self, start: Callable[[str], Worker], devices: tuple[str, ...], retries: int, advance: Advance
    ) -> None:
        self._start, self._devices, self._retries, self._advance = start, devices, retries, advance
        self._workers: list[Worker] = []
        self._queue: deque[Job[Any]] = deque()
        self._failed_starts = 0  # in a row: workers that died before their model was loaded

    def run(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        """Makes all jobs together, then those whose worker died, one at a time."""
        lost: list[Job[Any]] = []
        for outcome in self._run_together(jobs):
            if outcome.fault == WORKER_DIED:
                lost.append(outcome.job)
            else:
                yield outcome
        self.stop()
        for job in lost:
            yield self._retry(job)

    def stop(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.process.terminate()  # all at once, so that they end together
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _retry(self, job: Job[Any]) -> Outcome:
        for _ in range(self._retries):
            (outcome,) = self._run_together(iter([job]))
            if outcome.fault != WORKER_DIED:
                self.stop()
                return outcome
        self._advance(job.items)
        return Outcome(job, WORKER_DIED, 0.0)

    def _run_together(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        while True:
            self._assign()
            while len(self._queue) < len(self._devices) and (job := next(jobs, None)) is not None:
                self._queue.append(job)
                self._assign()  # at once: to plan the next one may take a while
            if all(worker.job is None for worker in self._workers):
                return
            workers: dict[Any, Worker] = {worker.connection: worker for worker in self._workers}
            for connection in wait_for(list(workers)):
                if (outcome := self._receive(workers[connection])) is not None:
                    yield outcome

    def _assign(self) -> None:
        """Gives a job to each idle worker, and starts a worker for each idle device."""
        for worker in self._workers:
            if worker.job is None and self._queue:
                worker.assign(self._queue.popleft())
        idle = Counter(self._devices) - Counter(worker.device for worker in self._workers)
        for device in itertools.islice(idle.elements(), len(self._queue)):
            self._workers.append(self._start(device))
            self._workers[-1].assign(self._queue.popleft())

    def _receive(self, worker: Worker) -> Outcome | None:
        """Reads one message of a worker; None where it is not the end of a job."""
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._remove_dead(worker)
        if isinstance(message, Exception):
            raise message
        if isinstance(message, Outcome):
            job, worker.job = worker.job, None
            return replace(message, job=job)
        if message is None:
            worker.ready, self._failed_starts = True, 0
        else:
            worker.reported += message
            self._advance(message)
        return None

    def _remove_dead(self, worker: Worker) -> Outcome | None:
        self._workers.remove(worker)
        worker.stop()
        if worker.ready:
            self._advance(-worker.reported)
            return None if worker.job is None else Outcome(worker.job, WORKER_DIED, 0.0)
        self._failed_starts += 1
        if self._failed_starts > self._retries:
            raise PipelineError(
                f"workers die while they load what they need ({self._failed_starts} one after the other; out of "
                f"memory?); finished shards are kept, run again with fewer resources.workers"
            )
        if worker.job is not None:
            self._queue.appendleft(worker.job)
        return None


def _serve(connection: Connection, setup: Setup, device: str, store: Store) -> None:
    """Runs in a worker. It sends None or why it cannot start, then for each job items that are done and the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too and stops us
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with one_thread(device):
        try:
            maker = setup(device)
        except Exception as error:
            connection.send(error if isinstance(error, PipelineError) else RuntimeError(traceback.format_exc()))
            return
        connection.send(None)
        with one_thread(device), suppress(EOFError):  # again, where `setup` was the first to load torch
            while True:
                job = connection.recv()
                progress = _ProgressSender(connection)
                outcome = attempt(job, maker, store=store, device=device, advance=progress.advance)
                progress.flush()
                connection.send(outcome)


class _ProgressSender:
    """Counts items and sends them a few times a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._items = 0
        self._sent = time.monotonic()

    def advance(self, items: int) -> None:
        self._items += items
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_REPORTS:
            self.flush()

    def flush(self) -> None:
        if self._items:
            self._connection.send(self._items)
        self._items, self._sent = 0, time.monotonic()


def _exit(signum: int, frame: Any) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the clean-up
    raise SystemExit(128 + signum)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
