"""Runs whose worker was killed, and runs that someone cancelled: real processes, a real server."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Running

from pipelines import cleanup
from pipelines.cleanup import find_runners, stop_all, stop_event, watch_run
from tests.prefect_server import Api

WORKER = """
import os, subprocess, sys
os.environ["PREFECT__FLOW_RUN_ID"] = "x"
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""
FLOW = """
import logging, os, signal, sys, threading, time, uuid
from pathlib import Path
from pipelines import cleanup
cleanup.SECONDS_BETWEEN_LOOKS, cleanup.SECONDS_TO_END = 0.05, 0.5
here, stop = Path(sys.argv[1]), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: (here / "told").write_text(str(stop.is_set())))  # and goes on
(here / "runners").write_text(str([one.pid for one in cleanup.find_runners()]))
with cleanup.watch_run(uuid.uuid4(), stop, logging.getLogger("test")):
    (here / "pid.new").write_text(str(os.getpid()))
    (here / "pid.new").rename(here / "pid")
    while True:
        time.sleep(1)
"""


def until(true: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(true())


def test_a_flow_whose_worker_is_killed_ends_even_if_it_does_not_listen(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-c", WORKER, FLOW, str(tmp_path), "prefect"]
    worker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, cwd=tmp_path)
    try:
        assert until((tmp_path / "pid").exists, 60)
        process = psutil.Process(int((tmp_path / "pid").read_text()))
        assert (tmp_path / "runners").read_text() == str([worker.pid])
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        try:
            assert until(lambda: not process.is_running(), 10)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert (tmp_path / "told").read_text() == "True"  # its stages were told to end before it was
    finally:
        worker.kill()
        worker.wait()


def test_a_flow_that_was_started_by_hand_hears_of_its_cancellation(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow
    def work() -> None:
        """Stands for any flow."""

    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    monkeypatch.setattr(cleanup, "SECONDS_BETWEEN_LOOKS", 0.01)
    assert find_runners() == []
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        run, stop = client.create_flow_run(work, state=Running()).id, threading.Event()
        with watch_run(run, stop, logging.getLogger("test")):
            assert not stop.wait(0.5)
            client.set_flow_run_state(run, Cancelling(), force=True)
            assert stop.wait(10)


def test_a_server_that_is_away_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: object) -> None:
        raise ConnectionError("the server is away")

    asked = threading.Semaphore(0)
    monkeypatch.setattr(cleanup, "get_client", lambda **_: (asked.release(), away()))
    monkeypatch.setattr(cleanup, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    stop = threading.Event()
    with watch_run(cleanup.UUID(int=1), stop, logging.getLogger("test")):
        assert asked.acquire(timeout=10)
        assert asked.acquire(timeout=10)  # it asks again
        assert not stop.is_set()


def test_all_walks_of_a_process_can_be_stopped_and_ended_ones_are_forgotten() -> None:
    with stop_event() as first, stop_event() as second:
        assert not first.is_set()
        stop_all()
        assert first.is_set()
        assert second.is_set()
        with stop_event() as third:
            assert not third.is_set()
        assert third.is_set()
    assert cleanup._STOPS == set()


def test_an_end_while_prefect_begins_a_run_is_no_crash(
    server: str, api: Api, monkeypatch: pytest.MonkeyPatch, new_repository: Callable[..., Path], tmp_path: Path
) -> None:
    """A server gets the run as cancelled; on one that ends with the flow, nobody waits for that."""
    from prefect.events.worker import EventsWorker

    from pipelines.reproduce import reproduce

    monkeypatch.setattr(cleanup, "_ENDING", threading.Event())
    monkeypatch.setattr(cleanup, "mute_console", lambda: None)
    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(KeyboardInterrupt):
        cleanup.end_process()
    with temporary_settings({PREFECT_API_URL: server}):
        cleanup.end_process()
        state = reproduce(workspace=str(new_repository(tmp_path, {"dvc.yaml": "stages: {}\n"})), return_state=True)
        EventsWorker.drain_all()  # the server of the tests may end before it is asked to at the exit
    assert state.is_cancelled()
    assert api.run(str(state.state_details.flow_run_id))["state"]["type"] == "CANCELLED"


def test_what_is_ended_starts_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "_ENDING", threading.Event())
    monkeypatch.setattr(cleanup, "mute_console", lambda: None)
    with stop_event() as first:
        cleanup.end_process()
        assert first.is_set()
    with stop_event() as second:
        assert second.is_set()
