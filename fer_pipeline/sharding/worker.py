"""One worker process and its parent's hold on it: a job at a time down a pipe, progress and results up.

A worker ends with its parent, however that ends. It is told to stop by SIGTERM, which leaves no temporary files.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.sharding.devices import one_thread, one_thread_for_children
from fer_pipeline.sharding.jobs import Begin, Job, Result, attempt

SECONDS_BETWEEN_WORDS = 0.2  # of progress: every message wakes the parent
SECONDS_TO_STOP = 5.0


@dataclass(frozen=True)
class Begun:
    """The first word of a worker: its model is loaded, or why it cannot be."""

    fault: Exception | None = None


Word = Begun | int | Result  # int: items done since the last word


@dataclass
class Worker:
    """The parent's hold on a worker; `job` is what it is making, `told` how much of it has been counted."""

    process: BaseProcess
    connection: Connection
    device: str
    begun: bool = False
    job: Job[Any] | None = None
    told: int = 0

    def give(self, job: Job[Any]) -> None:
        """Sends the next job; a worker that has just died will be found dead at the next look."""
        self.job, self.told = job, 0
        try:
            self.connection.send(job)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def read(self) -> Word | None:
        """The next word, None where the worker is gone."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None

    def stop(self) -> None:
        """Ends the worker, gently first."""
        self.process.terminate()
        self.process.join(SECONDS_TO_STOP)
        self.process.kill()
        self.process.join()
        self.connection.close()


def start_worker(begin: Begin, device: str, *, store: Path, owner: str, preload: str) -> Worker:
    """A new process of a fork server that has imported `preload` once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    ours, theirs = context.Pipe()
    with one_thread_for_children():
        process = context.Process(target=_serve, args=(theirs, begin, device, store, owner))
        process.start()
    theirs.close()
    return Worker(process, ours, device)


def _serve(connection: Connection, begin: Begin, device: str, store: Path, owner: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too and tells us
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kept = Store(store, owner=owner)
    with one_thread(device):
        try:
            maker = begin(device)
        except Exception as error:
            connection.send(Begun(error if isinstance(error, PipelineError) else RuntimeError(traceback.format_exc())))
            return
        connection.send(Begun())
        with one_thread(device):  # where `begin` was the first to load torch
            while (job := _next_job(connection)) is not None:
                progress = _Progress(connection)
                result = attempt(job, maker, store=kept, device=device, advance=progress.advance)
                progress.flush()
                connection.send(result)


def _next_job(connection: Connection) -> Job[Any] | None:
    try:
        return connection.recv()
    except EOFError:  # the parent is gone
        return None


class _Progress:
    """Counts items and sends them now and then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._items = 0
        self._last = time.monotonic()

    def advance(self, items: int) -> None:
        self._items += items
        if time.monotonic() - self._last >= SECONDS_BETWEEN_WORDS:
            self.flush()

    def flush(self) -> None:
        if self._items:
            self._connection.send(self._items)
        self._items, self._last = 0, time.monotonic()


def _stop(signum: int, frame: Any) -> None:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the tidying
    raise SystemExit(128 + signum)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
