"""Whatever dies in the middle of a deployed run: no process is left, the server knows, the next run goes on.

One workspace, one story: its stage `long` starts grandchildren that leave their session and ignore SIGTERM, until there
is a file `open`; `first` counts how often it was run.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.prefect_server import Api
from tests.processes import words_of

GRAPH = """
stages:
  first:
    cmd: echo run >> count && seq 9 > first.txt
    outs: [first.txt]
  long:
    cmd: python long.py
    deps: [first.txt, long.py]
    outs: [long.txt]
    meta: {gpu: true}
  last:
    cmd: cat first.txt long.txt > last.txt
    deps: [first.txt, long.txt]
    outs: [last.txt]
"""
LONG = """
import os, signal, subprocess, sys, time
from pathlib import Path
if Path("open").exists():
    Path("long.txt").write_text("through")
    sys.exit()
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    subprocess.Popen([sys.executable, "-c", sleeper])
    os._exit(0)
os.wait()
Path("begun").write_text(str(os.getpid()))
time.sleep(600)
"""
RUN_COOKIE, TREE_COOKIE = "PREFECT__FLOW_RUN_ID", "PIPELINES_TREE"
SECONDS_TO_END = 10.0


def wait_for(happens: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := happens():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:
        return {}


class Site:
    """A workspace, its deployment, its worker."""

    def __init__(self, root: Path, folder: Path, api: Api, environment: dict[str, str]) -> None:
        self.folder, self.api = folder, api
        self.environment = {**environment, "PIPELINES_WORKSPACE": str(folder), "PYTHONPATH": str(root)}
        folder.mkdir(parents=True)
        (folder / "dvc.yaml").write_text(GRAPH)
        (folder / "long.py").write_text(LONG)
        (folder / ".gitignore").write_text("/*.txt\n/begun\n/open\n/count\n")
        (folder / "pipelines").symlink_to(root / "pipelines")
        shutil.copy(root / "prefect.yaml", folder)
        for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "-A"]):
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        author = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *author, "commit", "-qm", "one"], cwd=folder, check=True)

    def prefect(self, *words: str) -> None:
        without = {name: value for name, value in self.environment.items() if name != "PIPELINES_WORKSPACE"}
        command = [sys.executable, "-m", "prefect", *words]
        told = subprocess.run(command, cwd=self.folder, env=without, capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr

    def worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--limit", "1"]
        with (self.folder.parent / "worker.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> str:
        deployment = self.api.ask("/deployments/name/reproduce/reproduce-local")["id"]
        parameters = {"gpus": ["0"], "gpu_limit": "gpu"}
        wanted = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return self.api.ask(f"/deployments/{deployment}/create_flow_run", wanted)["id"]

    def state(self, run: str) -> str:
        return self.api.run(run)["state"]["name"]

    def slots(self) -> int:
        limits = self.api.ask("/v2/concurrency_limits/filter", {"limit": 100})
        return next(limit["active_slots"] for limit in limits if limit["name"] == "gpu")

    def processes(self, run: str) -> list[psutil.Process]:
        """All that carry the run's marks: the flow, its supervisors, the stage and what it started."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it may end between two questions
                if environment_of(process).get(RUN_COOKIE) == run and "worker" not in words_of(process):
                    found.append(process)
        return found

    def begun(self, run: str) -> psutil.Process:
        """The stage `long`, once its grandchildren are there."""
        mark = self.folder / "begun"
        number = wait_for(lambda: mark.exists() and mark.read_text(), 180, f"stage begun; the run is {self.state(run)}")
        mark.unlink()
        return psutil.Process(int(number))

    def gone(self, run: str) -> None:
        wait_for(lambda: not self.processes(run), SECONDS_TO_END, "the end of every process of the run")


def supervisor_of(stage: psutil.Process) -> psutil.Process:
    return next(one for one in stage.parents() if any(word.endswith("supervisor.py") for word in words_of(one)))


def flow_of(stage: psutil.Process) -> psutil.Process:
    supervisors = [one for one in stage.parents() if any(word.endswith("supervisor.py") for word in words_of(one))]
    flow = supervisors[-1].parent()
    assert flow is not None
    return flow


@pytest.fixture
def site(tmp_path: Path, root: Path, api: Api, server_environment: dict[str, str]) -> Iterator[Site]:
    made = Site(root, tmp_path / "site", api, server_environment)
    yield made
    for process in psutil.process_iter():
        if environment_of(process).get("PIPELINES_WORKSPACE") == str(made.folder):
            with contextlib.suppress(psutil.Error):
                process.kill()


def test_whatever_is_killed_nothing_is_left_and_the_next_run_goes_on(site: Site, tmp_path: Path) -> None:
    site.prefect("work-pool", "create", "local", "--type", "process")
    site.prefect("global-concurrency-limit", "create", "gpu", "--limit", "8")
    site.prefect("--no-prompt", "deploy", "--all")
    worker = site.worker()

    # The stage itself: the run fails, with the signal in its words.
    run = site.start()
    site.begun(run).kill()
    wait_for(lambda: site.state(run) == "Failed", 120, "failure")
    site.gone(run)
    assert site.api.states(run) == {"first": "Completed", "long": "Failed", "last": "Skipped"}

    # Its supervisor: the guard beside it ends the tree.
    run = site.start()
    supervisor_of(site.begun(run)).kill()
    wait_for(lambda: site.state(run) == "Failed", 120, "failure")
    site.gone(run)
    assert site.api.states(run) == {"first": "Cached", "long": "Failed", "last": "Skipped"}

    # Cancelled through the API.
    run = site.start()
    site.begun(run)
    site.api.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    wait_for(lambda: site.state(run) == "Cancelled", 120, f"cancelled, not {site.state(run)}")
    site.gone(run)

    # The flow: nobody is left to say so but the worker.
    run = site.start()
    flow_of(site.begun(run)).kill()
    site.gone(run)
    wait_for(lambda: site.state(run) == "Crashed", 120, "crash told by the worker")

    # The worker: its flow ends itself.
    run = site.start()
    site.begun(run)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    killed = time.monotonic()
    site.gone(run)

    # A new worker, and the gate open: it goes on from where it stopped, and DVC alone would have made the same.
    (site.folder / "open").touch()
    site.worker()
    run = site.start()
    wait_for(lambda: site.state(run) == "Completed", 240, f"completion, not {site.state(run)}")
    assert site.api.states(run) == {"first": "Cached", "long": "Completed", "last": "Completed"}
    assert (site.folder / "count").read_text() == "run\n", "what was finished was never done again"
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("dvc.yaml", "long.py", ".gitignore", "open"):
        shutil.copy(site.folder / name, plain)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for words in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        command = [sys.executable, "-m", "dvc", *words]
        subprocess.run(command, cwd=plain, env={**os.environ, "PATH": path}, check=True, capture_output=True)
    for name in ("dvc.lock", "first.txt", "long.txt", "last.txt"):
        assert (site.folder / name).read_bytes() == (plain / name).read_bytes(), name

    # Slots of the dead are free when their lease is over.
    wait_for(lambda: site.slots() == 0, max(0, killed + 75 - time.monotonic()) + 5, "free slots")
