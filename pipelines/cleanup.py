"""End a run when its worker dies or someone cancels it, and clean up behind runs that died.

A worker that is killed leaves its flows running with nobody to cancel them: such a flow ends itself. A flow that was
started by hand has no worker that would receive a cancellation: it asks the server now and then. What a dead run left
behind is cleaned up by the next run, which holds the workspace: whatever else claims to run in it is dead.
"""

import contextvars
import functools
import itertools
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ParamSpec
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Crashed, Failed

from pipelines import FlowError, RefusedError
from pipelines.locks import repair_rwlock
from pipelines.process_tree import end_orphans

SECONDS_BETWEEN_LOOKS = 1.0
LOOKS_BETWEEN_QUESTIONS = 5
SECONDS_TO_END = 6.0
SECONDS_TO_SETTLE = 2.0
ACTIVE = [StateType.RUNNING, StateType.CANCELLING]
Logger = logging.Logger | logging.LoggerAdapter[Any]
P = ParamSpec("P")
_STOPS: set[threading.Event] = set()
_ENDING = threading.Event()
_INTERRUPTIBLE: list[object] = []  # flow functions that the main thread is in


def fail_in_one_line(function: Callable[P, State[Any]]) -> Callable[P, State[Any]]:
    """Make a FlowError of a flow's or task's function a failed state with its message, a Ctrl-C a cancelled one.

    Prefect would write a traceback of the first and report the second as a crash.
    One that is refused is cancelled: nothing is wrong with it. A worker's process would write a traceback of its own
    behind every state that is not completed, into the run's log.
    """
    for name in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_is_no_state_again)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        if is_main := threading.current_thread() is threading.main_thread():
            _INTERRUPTIBLE.append(function)
        try:
            return function(*args, **kwargs)
        except RefusedError as error:
            return Cancelled(name="Refused", message=str(error))
        except FlowError as error:
            return Failed(message=str(error))
        except KeyboardInterrupt:
            return Cancelled(message="ended by a person; what was finished is kept")
        finally:
            if is_main:
                _INTERRUPTIBLE.pop()

    return call


def _is_no_state_again(record: logging.LogRecord) -> bool:
    """Whether a line of the log says more than the state in which the run has just ended."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun | CancelledRun))


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
    if _ENDING.is_set():
        stop.set()
    try:
        yield stop
    finally:
        stop.set()
        _STOPS.discard(stop)


def stop_all() -> bool:
    """End the stages of every run of this process; return whether there was any run with stages."""
    stops = tuple(_STOPS)
    for stop in stops:
        stop.set()
    return bool(stops)


def end_process(*_: object) -> None:
    """Handle the signal with which a person ends this process: its runs end in order, and no stage starts any more."""
    _ENDING.set()
    mute_console()
    # Prefect takes an interrupt for a crash while it begins or ends a run on a server.
    if not stop_all() and (_INTERRUPTIBLE or get_current_settings().api.url is None):
        raise KeyboardInterrupt


def mute_console() -> None:
    """Write no log to the terminal any more; the server goes on getting it."""
    for logger in (logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))):
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL + 1)


def is_ending() -> bool:
    """Return whether a person has ended this process."""
    return _ENDING.is_set()


@contextmanager
def watch_run(run: UUID, stop: threading.Event, log: Logger) -> Iterator[None]:
    """Set `stop` when the run is cancelled from outside, end the process when its worker is gone."""
    runners, over = find_runners(), threading.Event()

    def watch() -> None:
        for look in itertools.count(1):
            if over.wait(SECONDS_BETWEEN_LOOKS):
                return
            if not all(map(_is_alive, runners)):
                stop.set()
                with suppress(SystemExit, OSError):  # the console of a flow ends with its worker: it would end this too
                    log.error("the worker of this run is gone: the run ends, what was finished is kept")
                os.kill(os.getpid(), signal.SIGTERM)
                if not over.wait(SECONDS_TO_END):
                    os.kill(os.getpid(), signal.SIGKILL)
                return
            if not runners and look % LOOKS_BETWEEN_QUESTIONS == 0 and _is_cancelled(run):
                log.warning("cancelled: the running stages are ended, what was finished is kept")
                stop.set()
                return

    threading.Thread(target=contextvars.copy_context().run, args=(watch,), name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is_cancelled(run: UUID) -> bool:
    with suppress(Exception), get_client(sync_client=True) as client:  # a server that is away cancels nothing
        state = client.read_flow_run(run).state
        return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
    return False


def workspace_tag(workspace: Path) -> str:
    """Return the tag of every run in one workspace of one host."""
    return f"workspace:{platform.node()}:{workspace}"


def tag_run(workspace: Path, run: UUID) -> None:
    """Tag a run with its workspace, so that a later run there can tell that it died, and as those of deployments."""
    with get_client(sync_client=True) as client:
        tags = {*client.read_flow_run(run).tags, workspace_tag(workspace), "dvc"}
        client.update_flow_run(run, tags=sorted(tags))


def clean_up(workspace: Path, this_run: UUID, log: Logger) -> None:
    """End the processes of dead runs, repair DVC's lock file and mark as crashed what the server takes for alive."""
    if count := end_orphans(workspace):
        log.warning("ended %d processes that a killed run had left behind", count)
    if repaired := repair_rwlock(workspace):
        log.warning("%s", repaired)
    here, state = {"all_": [workspace_tag(workspace)]}, {"type": {"any_": ACTIVE}}
    dead = FlowRunFilter.model_validate({"id": {"not_any_": [this_run]}, "tags": here, "state": state})
    running = TaskRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING]}}})
    message = "The process of this run died; a later run in the same workspace noticed it and goes on from there."
    with get_client(sync_client=True) as client:
        if client.read_flow_runs(flow_run_filter=dead):
            time.sleep(SECONDS_TO_SETTLE)  # one that has just unlocked the workspace reports its end after that
        for run in client.read_flow_runs(flow_run_filter=dead):
            log.warning("the run %r ended without reporting it: it is marked as crashed", run.name)
            this = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
            for task in client.read_task_runs(flow_run_filter=this, task_run_filter=running):
                client.set_task_run_state(task.id, Crashed(message=message), force=True)
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def crash_runs_of_worker(client: SyncPrefectClient, worker: str, pool: str) -> None:
    """Mark the runs of a worker that is gone as crashed, which frees their slots."""
    active = FlowRunFilter.model_validate({"state": {"type": {"any_": [*ACTIVE, StateType.PENDING]}}})
    of_pool = WorkPoolFilter.model_validate({"name": {"any_": [pool]}})
    for run in client.read_flow_runs(flow_run_filter=active, work_pool_filter=of_pool):
        if run.labels.get("prefect.worker.name") == worker:
            message = "Its worker was ended. Run it again; finished stages stay."
            client.set_flow_run_state(run.id, Crashed(message=message))
