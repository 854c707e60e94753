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
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import ONE_THREAD, environment, one_thread, worker_devices
from fer_pipeline.sharding.jobs import WORKER_DIED, Advance, Job, Maker, Outcome, Setup, attempt

SECONDS_BETWEEN_REPORTS = 0.2  # of progress: every message wakes the parent
SECONDS_TO_STOP = 5.0

# What a worker sends: None when its model is loaded or why it cannot be, then for each job items done and the outcome.
Message = Outcome | Exception | int | None


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
    multiprocessing.get_context("forkserver").set_forkserver_preload([preload])
    pool = WorkerPool(lambda device: Worker(device, setup, store), devices, resources.retries, advance)
    yield from pool.run(everything)


class Worker:
    """A worker as its parent sees it: the job that it is making and the items of it that it has reported."""

    takes_job_early = True  # before its model is loaded
    ready = False  # the model is loaded
    job: Job[Any] | None = None
    reported = 0

    def __init__(self, device: str, setup: Setup, store: Store) -> None:
        self.device = device
        context = multiprocessing.get_context("forkserver")
        self.channel, theirs = context.Pipe()
        with environment(ONE_THREAD):
            self.process = context.Process(target=_serve, args=(theirs, setup, device, store))
            self.process.start()
        theirs.close()

    def send(self, job: Job[Any]) -> None:
        """Sends a job; that the worker has just died is noticed when it is read from."""
        self.job, self.reported = job, 0
        with suppress(BrokenPipeError, ConnectionResetError):
            self.channel.send(job)

    def receive(self) -> Message:
        """Returns the next message; EOFError or ConnectionResetError where the worker has died."""
        return self.channel.recv()

    def ask_to_stop(self) -> None:
        """Lets the worker end by itself, which leaves no temporary files."""
        self.process.terminate()

    def stop(self) -> None:
        """Ends the worker, if need be by force."""
        self.ask_to_stop()
        self.process.join(SECONDS_TO_STOP)
        self.process.kill()
        self.process.join()
        self.channel.close()


class WorkerPool:
    """The workers of one run, at most one for each of `devices`; `start` starts one."""

    retry_alone = True  # or at once, by the next worker that is ready
    fault = (
        "workers die while they load what they need ({count} one after the other; out of memory?); finished shards "
        "are kept, run again with fewer resources.workers"
    )

    def __init__(self, start: Callable[[str], Worker], devices: Iterable[str], retries: int, advance: Advance) -> None:
        self._start, self._devices, self._retries, self._advance = start, list(devices), retries, advance
        self._workers: list[Worker] = []
        self._queue: deque[Job[Any]] = deque()
        self._lost: deque[Job[Any]] = deque()
        self._deaths: Counter[str] = Counter()  # of workers, by the key of the job that they were making
        self._failed_starts = 0  # in a row: workers that died before their model was loaded

    def run(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        """Makes all jobs and yields the outcomes as they come; an error of `setup` is raised."""
        try:
            yield from self._run_together(jobs)
            while self._lost:
                self._stop()
                yield from self._run_together(iter([self._lost.popleft()]))
        finally:
            self._stop()

    def wait(self) -> list[Any]:
        """Returns the channels on which a message has come."""
        return wait_for([worker.channel for worker in self._workers])

    def _stop(self) -> None:
        for worker in self._workers:
            worker.ask_to_stop()  # all at once, so that they end together
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def _run_together(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        while True:
            self._assign()
            while len(self._queue) < len(self._devices) and (job := next(jobs, None)) is not None:
                self._queue.append(job)
                self._assign()  # at once: to plan the next one may take a while
            if not self._queue and all(worker.job is None for worker in self._workers):
                return
            ready = self.wait()
            for worker in [worker for worker in self._workers if worker.channel in ready]:
                if (outcome := self._receive(worker)) is not None:
                    yield outcome

    def _assign(self) -> None:
        """Starts a worker on idle devices while jobs wait, and gives a job to each worker that has none."""
        waiting = len(self._queue) - sum(worker.job is None for worker in self._workers)
        idle = Counter(self._devices) - Counter(worker.device for worker in self._workers)
        self._workers += map(self._start, itertools.islice(idle.elements(), max(waiting, 0)))
        for worker in self._workers:
            if worker.job is None and self._queue and (worker.ready or worker.takes_job_early):
                worker.send(self._queue.popleft())

    def _receive(self, worker: Worker) -> Outcome | None:
        """Reads one message of a worker; None where it is not the end of a job."""
        try:
            message = worker.receive()
        except (EOFError, ConnectionResetError) as death:
            return self._replace(worker, str(death))
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

    def _replace(self, worker: Worker, reason: str) -> Outcome | None:
        """Removes a dead worker; its job is tried again or, after too many tries, comes back as lost."""
        self._workers.remove(worker)
        worker.stop()
        job = worker.job
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > self._retries:
                if self.retry_alone or not any(other.ready for other in self._workers):
                    raise PipelineError(self.fault.format(count=self._failed_starts, reason=reason))
                self._devices.remove(worker.device)  # the others go on
                self._failed_starts = 0
            self._queue.extendleft([job] if job else [])
        elif job is not None:
            self._advance(-worker.reported)
            self._deaths[job.key] += 1
            if self._deaths[job.key] > self._retries:
                self._advance(job.items)
                return Outcome(job, WORKER_DIED, 0.0)
            if self.retry_alone:
                self._lost.append(job)
            else:
                self._queue.appendleft(job)
        return None


class WorkerTask:
    """What a worker does in its own process: load the model once, then make shard after shard."""

    def __init__(self, setup: Setup, device: str, store: Store, send: Callable[[Message], None]) -> None:
        self._setup, self._device, self._store, self._send = setup, device, store, send
        self._maker: Maker
        self._unsent, self._sent = 0, time.monotonic()

    def start(self) -> Exception | None:
        """Loads the model; sends, and returns, None or why that is impossible."""
        error = None
        try:
            self._load()
        except Exception as fault:
            error = fault if isinstance(fault, PipelineError) else RuntimeError(traceback.format_exc())
        self._send(error)
        return error

    def _load(self) -> None:
        with one_thread(self._device):
            self._maker = self._setup(self._device)

    def make(self, job: Job[Any]) -> None:
        with one_thread(self._device):
            outcome = attempt(job, self._maker, store=self._store, device=self._device, advance=self._advance)
        self._report()
        self._send(outcome)

    def _advance(self, items: int) -> None:
        self._unsent += items
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_REPORTS:
            self._report()

    def _report(self) -> None:
        if self._unsent:
            self._send(self._unsent)
        self._unsent, self._sent = 0, time.monotonic()


def _serve(connection: Connection, setup: Setup, device: str, store: Store) -> None:
    """Runs in a worker until its parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too and stops us
    signal.signal(signal.SIGTERM, _exit)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = WorkerTask(setup, device, store, connection.send)
    with suppress(EOFError):
        failed = task.start()
        while not failed:
            task.make(connection.recv())


def _exit(signum: int, frame: Any) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the clean-up
    raise SystemExit(128 + signum)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
