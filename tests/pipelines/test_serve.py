"""`serve` on a real port: what it sets up, that it refuses a second one, and that nothing of it is left."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.prefect_server import Api

SECONDS = 150  # on SQLite a writer now and then waits for 60 s


class Served:
    """`python -m pipelines serve` in a process of its own."""

    def __init__(self, root: Path, port: int, environment: dict[str, str]) -> None:
        self.root, self.port, self.environment = root, port, environment
        self.address = f"http://127.0.0.1:{port}"
        self.log = Path(environment["PREFECT_HOME"]) / "serve.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                self.command(port),
                cwd=root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "pipelines", "serve", "--port", str(port), "--workspace", str(self.root)]

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return Api(f"{self.address}/api").ask(f"/{path}", body, method)

    def until(self, true: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + SECONDS
        while not (value := true()):
            assert self.process.poll() is None, self.text[-4000:]
            assert time.monotonic() < deadline, self.text[-4000:]
            time.sleep(0.1)
        return value

    def workers(self) -> list[str]:
        """The names of those that have sent a heartbeat lately."""
        found = self.ask("work_pools/local/workers/filter", {})
        return [one["name"] for one in found if one["status"] == "ONLINE" and one["last_heartbeat_time"]]

    def deployments(self) -> dict[str, dict[str, Any]]:
        found = self.ask("deployments/filter", {})
        flows = {one["flow_id"]: self.ask("flows/" + one["flow_id"])["name"] for one in found}
        return {f"{flows[one['flow_id']]}/{one['name']}": one for one in found}

    def nightly(self) -> dict[str, Any]:
        [schedule] = self.deployments()["refresh/local"]["schedules"]
        return schedule

    def refused(self, home: Path) -> str:
        """What a second one in this process says, which must be one line."""
        from prefect.settings import PREFECT_HOME, temporary_settings

        from pipelines import FlowError
        from pipelines.serve import serve

        with temporary_settings({PREFECT_HOME: home}), pytest.raises(FlowError) as told:
            serve(self.port, str(self.root), say=pytest.fail)
        assert "\n" not in str(told.value)
        return str(told.value)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def serving(
    root: Path, tmp_path: Path, free_port: int, environment_of: Callable[[Path], dict[str, str]]
) -> Callable[[], Any]:
    """Starts `serve` with one home and port, waits until it is up, and ends it."""
    environment = {**environment_of(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}

    @contextmanager
    def start() -> Iterator[Served]:
        served = Served(root, free_port, environment)
        try:
            served.until(lambda: "Ctrl-C ends" in served.text)
            served.until(lambda: "started!" in served.text)
            yield served
        finally:
            served.process.kill()
            served.process.wait()

    return start


def test_serves_until_it_is_told_to_end(serving: Callable[[], Any], root: Path, tmp_path: Path) -> None:
    with serving() as served:
        _is_set_up(served)
        _shows_reports(served)
        assert f"already serving at {served.address} (process {served.process.pid}" in served.refused(tmp_path)
        assert f"another Prefect server answers at {served.address}" in served.refused(tmp_path / "other")
        _is_set_up_again(served, root)
        _ends(served, lambda: served.process.send_signal(signal.SIGTERM), code=143)


def _is_set_up_again(served: Served, root: Path) -> None:
    """A second setting up changes nothing that a person has set."""
    from prefect.client.orchestration import SyncPrefectClient

    from pipelines import serve
    from pipelines.process_tree import ProgramGroup

    schedule = f"deployments/{served.deployments()['refresh/local']['id']}/schedules/{served.nightly()['id']}"
    assert not served.nightly()["active"]
    served.ask(schedule, {"active": True}, "PATCH")
    served.ask("v2/concurrency_limits/gpu", {"limit": 5}, "PATCH")
    environment = {**served.environment, "PREFECT_API_URL": f"{served.address}/api"}
    with SyncPrefectClient(f"{served.address}/api") as client:
        serve.ensure_pool(client)
        assert "prefect gcl update gpu --limit 2" in serve.ensure_gpu_limit(client, 2)
        serve.ensure_dead_run_automation(client)
        assert len(serve.deploy(client, ProgramGroup(root, environment), root / "prefect.yaml")) == 3
    assert served.nightly()["active"], "a schedule that was switched on was switched off"
    assert served.ask("v2/concurrency_limits/gpu")["limit"] == 5
    assert len(served.ask("automations/filter", {})) == 1
    assert len(served.deployments()) == 3


def test_a_server_that_dies_ends_all_and_is_told(
    root: Path, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_HOME, temporary_settings

    from pipelines import FlowError, serve

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(serve, "PREFECT", ("sh", "-c", "echo no room on the disk; exit 3"))
    said: list[str] = []
    with temporary_settings({PREFECT_HOME: tmp_path}), pytest.raises(FlowError) as told:
        serve.serve(free_port, str(root), say=said.append)
    assert str(told.value) == (
        "the server ended (exit code 3), so everything was ended; its last line: no room on the disk"
    )
    assert (tmp_path / "server.log").read_text() == "no room on the disk\n"
    assert len(said) == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_programs_end_together_and_the_last_one_first(tmp_path: Path) -> None:
    """The worker has to reach the server while it is ended."""
    from pipelines.process_tree import ProgramGroup

    programs = ProgramGroup(tmp_path, {"PATH": os.environ["PATH"]})
    said: list[str] = []
    lasting = "trap 'echo {0} ends; exit' TERM; echo {0} is up; sleep 600 & while :; do wait; done"
    for name in ("first", "second"):
        programs.start(name, ["bash", "-c", lasting.format(name)], said.append)
    deadline = time.monotonic() + SECONDS
    while len(said) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    programs.start("third", ["sh", "-c", "exit 7"], said.append)
    assert programs.over.wait(SECONDS)
    children = psutil.Process().children(recursive=True)
    programs.end()
    assert said[2:] == ["second ends", "first ends"]
    assert programs.failed is not None
    assert (programs.failed[0], programs.failed[1].code) == ("third", 7)
    sleeping = [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not [one for one in sleeping if one.cmdline()[:1] == ["sleep"]]


SIGNALS = """
import os, signal, subprocess, sys, threading
from pipelines.serve import set_on_signals
signal.signal(signal.SIGHUP, signal.SIG_IGN)
over = threading.Event()
with set_on_signals(over):
    os.kill(os.getpid(), signal.SIGHUP)
    ask = "import signal; print(signal.getsignal(signal.SIGHUP).name)"
    print("handed down:", subprocess.check_output([sys.executable, "-c", ask], text=True).strip())
    print("over after HUP:", over.is_set())
    os.kill(os.getpid(), signal.SIGTERM)
    print("over after TERM:", over.wait(10))
print("afterwards:", signal.getsignal(signal.SIGHUP).name)
"""


def test_an_ignored_signal_stays_ignored_and_is_not_handed_down(root: Path) -> None:
    """In a process of its own: libraries of other tests have handlers of theirs in this one."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    told = subprocess.run([sys.executable, "-c", SIGNALS], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [
        "handed down: SIG_DFL",
        "over after HUP: False",
        "over after TERM: True",
        "afterwards: SIG_IGN",
    ]


def _is_set_up(served: Served) -> None:
    assert served.until(served.workers)
    assert served.ask("work_pools/local")["type"] == "process"
    found = served.deployments()
    assert set(found) == {"reproduce/local", "refresh/local", "sweep/local"}
    assert {one["work_pool_name"] for one in found.values()} == {"local"}
    steps = [step for one in found.values() for step in one["pull_steps"]]
    told = {
        name: value for step in steps for name, value in step["prefect.deployments.steps.set_working_directory"].items()
    }
    assert told == {"directory": "{{ $PIPELINES_WORKSPACE }}"}, "each worker has a workspace of its own"
    assert served.ask("v2/concurrency_limits/gpu")["limit"] == 2
    assert [one["name"] for one in served.ask("automations/filter", {})] == ["dead run"]
    queues = {one["name"]: one["priority"] for one in served.ask("work_pools/local/queues/filter", {})}
    assert queues["by-hand"] < queues["scheduled"], "a nightly run goes before one that somebody waits for"


def _shows_reports(served: Served) -> None:
    address = next(line.split()[1] for line in served.text.splitlines() if line.startswith("reports:"))
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(address, b"written", method="PUT"), timeout=10)


def _ends(served: Served, how: Callable[[], Any], code: int) -> None:
    """Ends it and sees that its programs, and what they started, are gone as soon as it is."""
    children = served.children()
    assert len(children) >= 4
    how()
    assert served.process.wait(60) == code, served.text[-4000:]
    assert psutil.wait_procs(children, timeout=0)[1] == []


def test_a_port_of_another_program_is_told_with_its_cure(root: Path, tmp_path: Path, free_port: int) -> None:
    from prefect.settings import PREFECT_HOME, temporary_settings

    from pipelines import FlowError
    from pipelines.serve import serve

    with socket.create_server(("127.0.0.1", free_port)), temporary_settings({PREFECT_HOME: tmp_path}):
        cure = f"port {free_port} is taken by another program; choose another: make serve PORT={free_port + 100}"
        with pytest.raises(FlowError, match=cure):
            serve(free_port, str(root), say=pytest.fail)


def test_a_folder_without_deployments_is_told(tmp_path: Path) -> None:
    from pipelines import FlowError
    from pipelines.serve import serve

    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(FlowError, match=r"has no prefect\.yaml"):
        serve(workspace=str(tmp_path), say=pytest.fail)


def test_reports_come_and_go(tmp_path: Path) -> None:
    from pipelines.serve import serve_reports

    with serve_reports(tmp_path / "reports", 0) as address:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}index.html", timeout=10)
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "index.html").write_text("results")
        (tmp_path / "secret").write_text("not for reading")
        assert urllib.request.urlopen(f"{address}index.html", timeout=10).read() == b"results"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}%2e%2e/secret", timeout=10)
