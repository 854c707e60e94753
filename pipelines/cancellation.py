"""End a run when its worker dies or someone cancels it.

A worker that is killed leaves its flows running with nobody to cancel them: such a flow ends itself. A flow that was
started by hand has no worker that would receive a cancellation: it asks the server now and then.
"""

import contextvars
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_BETWEEN_QUESTIONS = 5
SECONDS_TO_END = 6.0
_STOPS: set[threading.Event] = set()
Logger = logging.Logger | logging.LoggerAdapter[Any]


def find_runners() -> list[psutil.Process]:
    """Return Prefect's processes above this one, runner and worker; none for a flow started by hand."""
    runners: list[psutil.Process] = []
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        with suppress(psutil.Error):
            for parent in psutil.Process().parents():
                if not any("prefect" in word for word in parent.cmdline()):
                    break
                runners.append(parent)
    return runners


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Yield an event that ends the stages of one run; it is set at the end of the block, and by `stop_all`."""
    stop = threading.Event()
    _STOPS.add(stop)
    try:
        yield stop
    finally:
        stop.set()
        _STOPS.discard(stop)


def stop_all() -> None:
    """End the stages of every run of this process."""
    for stop in tuple(_STOPS):
        stop.set()


@contextmanager
def watch_run(run: UUID, stop: threading.Event, log: Logger) -> Iterator[None]:
    """Set `stop` when the run is cancelled from outside, end the process when its worker is gone."""
    over = threading.Event()
    arguments = (_watch, run, find_runners(), stop, over, log)
    threading.Thread(target=contextvars.copy_context().run, args=arguments, name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(run: UUID, runners: list[psutil.Process], stop: threading.Event, over: threading.Event, log: Logger) -> None:
    looks = 0
    while not over.wait(SECONDS_BETWEEN_LOOKS):
        looks += 1
        if not all(map(_is_alive, runners)):
            stop.set()
            with suppress(SystemExit, OSError):  # the console of a flow ends with its worker, and would take this along
                log.error("the worker of this run is gone: the run ends, what was finished is kept")
            os.kill(os.getpid(), signal.SIGTERM)
            if not over.wait(SECONDS_TO_END):
                os.kill(os.getpid(), signal.SIGKILL)
            return
        if not runners and looks % LOOKS_BETWEEN_QUESTIONS == 0 and _is_cancelled(run):
            log.warning("cancelled: the running stages are ended, what was finished is kept")
            stop.set()
            return


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_cancelled(run: UUID) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
    except Exception:  # a server that does not answer cancels nothing
        return False
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
