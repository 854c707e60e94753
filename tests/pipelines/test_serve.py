"""`serve` on a real port: what it sets up, that it refuses a second one, and that nothing of it is left."""

import json
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

SECONDS = 120


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
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

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

        from pipelines.errors import FlowError
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


def test_serves_until_it_is_told_to_end_and_again_until_its_server_dies(
    serving: Callable[[], Any], tmp_path: Path
) -> None:
    with serving() as served:
        _is_set_up(served)
        _shows_reports(served)
        assert f"already serving at {served.address} (process {served.process.pid}" in served.refused(tmp_path)
        assert f"another Prefect server answers at {served.address}" in served.refused(tmp_path / "other")
        assert not served.nightly()["active"]
        schedule = f"deployments/{served.deployments()['refresh/local']['id']}/schedules/{served.nightly()['id']}"
        served.ask(schedule, {"active": True}, "PATCH")
        served.ask("v2/concurrency_limits/gpu", {"limit": 5}, "PATCH")
        _ends(served, lambda: served.process.send_signal(signal.SIGTERM), code=0)
    with serving() as served:
        assert served.nightly()["active"], "a schedule that was switched on was switched off"
        assert served.ask("v2/concurrency_limits/gpu")["limit"] == 5
        assert len(served.deployments()) == 3
        server = next(one for one in served.children() if one.cmdline()[1:5] == ["-m", "prefect", "server", "start"])
        _ends(served, server.kill, code=1)
        assert "error: the server ended (killed by signal 9 (SIGKILL))" in served.text


def _is_set_up(served: Served) -> None:
    assert served.until(served.workers)
    assert served.ask("work_pools/local")["type"] == "process"
    found = served.deployments()
    assert set(found) == {"reproduce/local", "refresh/local", "sweep/local"}
    assert {one["work_pool_name"] for one in found.values()} == {"local"}
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

    from pipelines.errors import FlowError
    from pipelines.serve import serve

    with socket.create_server(("127.0.0.1", free_port)), temporary_settings({PREFECT_HOME: tmp_path}):
        cure = f"port {free_port} is taken by another program; choose another: make serve PORT={free_port + 100}"
        with pytest.raises(FlowError, match=cure):
            serve(free_port, str(root), say=pytest.fail)


def test_a_folder_without_deployments_is_told(tmp_path: Path) -> None:
    from pipelines.errors import FlowError
    from pipelines.serve import serve

    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").touch()
    with pytest.raises(FlowError, match=r"has no prefect\.yaml"):
        serve(workspace=str(tmp_path), say=pytest.fail)


def test_reports_come_and_go(tmp_path: Path) -> None:
    from pipelines.report_site import report_site

    with report_site(tmp_path / "reports", 0) as address:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}index.html", timeout=10)
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "index.html").write_text("results")
        (tmp_path / "secret").write_text("not for reading")
        assert urllib.request.urlopen(f"{address}index.html", timeout=10).read() == b"results"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}%2e%2e/secret", timeout=10)
