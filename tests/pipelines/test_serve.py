"""`serve` on a real port: what it sets up, that it refuses a second one, and that nothing of it is left."""

import contextlib
import functools
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.prefect_server import Api
from tests.processes import words_of

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

    @property
    def password(self) -> str:
        return (self.log.parent / "serve.password").read_text().strip()

    @functools.cached_property
    def api(self) -> Api:
        return Api(f"{self.address}/api", self.password)

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        return self.api.ask(f"/{path}", body, method)

    def status(self, path: str, headers: dict[str, str], method: str = "GET", body: str = "") -> int:
        """What is answered to exactly these headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body.encode())
        with contextlib.closing(connection):
            return connection.getresponse().status

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
        [schedule] = self.deployments()["refresh/refresh-local"]["schedules"]
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

    @contextlib.contextmanager
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
        _refuses_foreign_pages(served)
        _runs_flows(served)
        _answers_doctor(served)
        _shows_reports(served)
        assert f"already serving at {served.address} (process {served.process.pid}" in served.refused(tmp_path)
        assert f"another Prefect server answers at {served.address}" in served.refused(tmp_path / "other")
        _is_set_up_again(served, root)
        _ends(served, lambda: served.process.send_signal(signal.SIGTERM), code=143)


def _refuses_foreign_pages(served: Served) -> None:
    """What a page of another site can send makes no deployment; a page of its own and programs are answered."""
    own, foreign = f"127.0.0.1:{served.port}", f"page.example:{served.port}"
    whole = {"Host": own, **served.api.headers}
    made = json.dumps({"name": "foreign", "flow_id": served.deployments()["reproduce/reproduce-local"]["flow_id"]})
    post = functools.partial(served.status, "/api/deployments/", method="POST", body=made)
    assert post({"Host": own}) == 403, "no token"
    assert post({"Host": own, "Origin": "http://page.example", "Content-Type": "text/plain"}) == 403, "a form"
    assert post({**whole, "Host": foreign}) == 403, "a name of its own that points here"
    assert post({**whole, "Origin": "http://page.example"}) == 403
    assert post({**whole, "Origin": "null"}) == 403, "a page in a sandbox"
    assert post({**whole, "Origin": f"http://127.0.0.1:{served.port + 1}"}) == 403, "another program's page"
    assert post({name: value for name, value in whole.items() if name != "Authorization"}) == 401
    assert post({**whole, "Authorization": "Basic YWRtaW46YWRtaW4="}) == 401
    assert post({**whole, "Prefect-Csrf-Token": "guessed"}) == 403
    assert "reproduce/foreign" not in served.deployments()
    assert post({**whole, "Origin": served.address}) == 201
    served.ask("deployments/" + served.deployments()["reproduce/foreign"]["id"], method="DELETE")

    ask = functools.partial(served.status, "/api/flows/name/reproduce")
    assert ask({"Host": own}) == 401
    assert ask({**whole, "Host": foreign}) == 403
    assert ask({**whole, "Host": "localhost:9000"}) == 200, "through a tunnel"
    for origin, status in {f"http://localhost:{served.port}": 200, "http://page.example": 403}.items():
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        assert served.status("/api/deployments/", {"Host": own, **asked}, "OPTIONS") == status
    for path, status in {"/": 200, "/ui-settings": 200}.items():
        assert served.status(path, {"Host": own, "Accept": "*/*"}) == status
        assert served.status(path, {"Host": foreign, "Accept": "*/*"}) == 403
    with urllib.request.urlopen(f"{served.address}/ui-settings", timeout=SECONDS) as answer:
        told, policy = json.loads(answer.read()), answer.headers["Content-Security-Policy"].split("; ")
    addresses = {f"{scheme}://{name}:{served.port}" for scheme in ("http", "ws") for name in ("127.0.0.1", "localhost")}
    assert set(policy[0].split()) == {"connect-src", "'self'", *addresses}, "its pages ask no other host"
    assert told["default_ui"] == "v1", "the other UI would ask, and complain"
    assert (told["api_url"], told["auth"], told["csrf_enabled"]) == (f"{served.address}/api", "BASIC", True)

    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Origin, Subprotocol

    events = f"ws://{own}/api/events/in"
    with pytest.raises(InvalidStatus, match="403"):
        connect(events, origin=Origin("http://page.example"), subprotocols=[Subprotocol("prefect")])
    with connect(events, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": "guessed"}))
        with pytest.raises(ConnectionClosed):
            socket.recv(SECONDS)

    file = served.log.parent / "serve.password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert served.password not in served.text + (served.log.parent / "server.log").read_text()
    assert served.password not in str([*map(words_of, served.children())])


def _runs_flows(served: Served) -> None:
    """The worker takes a run, and the run tells the server how it ended: both know the password."""
    deployment = served.deployments()["reproduce/reproduce-local"]["id"]
    asked = {"parameters": {"targets": ["nothing_of_that_name"]}, "state": {"type": "SCHEDULED"}}
    run = served.ask(f"deployments/{deployment}/create_flow_run", asked)["id"]
    served.until(lambda: served.api.run(run)["state"]["type"] in ("FAILED", "CRASHED"))
    assert "nothing_of_that_name" in served.api.run(run)["state"]["message"]
    served.until(lambda: not any("prefect.engine" in " ".join(words_of(process)) for process in served.children()))
    assert "Traceback" not in served.text, "the state has said it in a line"
    logs = served.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
    assert "nothing_of_that_name" in logs[-1]["message"]


def _answers_doctor(served: Served) -> None:
    from fer_pipeline.health.prefect_server import check_server, check_workers
    from fer_pipeline.health.software import CheckContext

    address = {"PREFECT_API_URL": f"{served.address}/api"}
    told = CheckContext(served.root, environment={**address, "PREFECT_API_AUTH_STRING": served.password})
    assert check_server(told).level == "ok"
    assert check_workers(told).message == "local: 1 workers online"
    found = check_server(CheckContext(served.root, environment=address))
    assert (found.level, "export PREFECT_API_AUTH_STRING" in found.advice) == ("problem", True)


def _is_set_up_again(served: Served, root: Path) -> None:
    """A second setting up changes nothing that a person has set."""
    from prefect.client.orchestration import SyncPrefectClient

    from pipelines import serve
    from pipelines.process_tree import ProgramGroup

    schedule = f"deployments/{served.deployments()['refresh/refresh-local']['id']}/schedules/{served.nightly()['id']}"
    assert not served.nightly()["active"]
    served.ask(schedule, {"active": True}, "PATCH")
    served.ask("v2/concurrency_limits/gpu", {"limit": 5}, "PATCH")
    api = {"PREFECT_API_URL": f"{served.address}/api", "PREFECT_API_AUTH_STRING": served.password}
    environment = {**served.environment, **api}
    with SyncPrefectClient(f"{served.address}/api", auth_string=served.password) as client:
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
    monkeypatch.setattr(serve, "SERVER", ("sh", "-c", "echo no room on the disk; exit 3"))
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
    assert not [one for one in children if words_of(one)[:1] == ["sleep"]]


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
    assert set(found) == {"reproduce/reproduce-local", "refresh/refresh-local", "sweep/sweep-local"}
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
    from pipelines.loopback import serve_reports

    with serve_reports(tmp_path / "reports", 0) as address:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}index.html", timeout=10)
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "index.html").write_text("results")
        (tmp_path / "secret").write_text("not for reading")
        with urllib.request.urlopen(f"{address}index.html", timeout=10) as answer:
            assert answer.read() == b"results"
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}%2e%2e/secret", timeout=10)


def test_reports_are_for_own_pages_and_no_link_leads_out_of_them(tmp_path: Path) -> None:
    from pipelines.loopback import serve_reports

    (tmp_path / "disk" / "tables").mkdir(parents=True)
    (tmp_path / "reports").symlink_to("disk")  # the folder itself may be on another disk
    (tmp_path / "disk" / "tables" / "a.csv").write_text("1,2")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "index.html").write_text("not for reading")
    for name, target in {
        "inside.csv": "tables/a.csv",
        "file": "../outside/index.html",
        "folder": "../outside",
        "absolute": "/etc/passwd",
        "circle": "circle",
    }.items():
        (tmp_path / "disk" / name).symlink_to(target)
    (tmp_path / "disk" / "page").mkdir()
    (tmp_path / "disk" / "page" / "index.html").symlink_to("../../outside/index.html")

    def status(path: str, **headers: str) -> int:
        request = urllib.request.Request(f"{address}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with serve_reports(tmp_path / "reports", 0) as address:
        assert {path: status(path) for path in ("", "tables/", "tables/a.csv", "inside.csv")} == {
            "": 200, "tables/": 200, "tables/a.csv": 200, "inside.csv": 200,
        }  # fmt: skip
        led = (
            "file",
            "folder",
            "folder/",
            "folder/index.html",
            "absolute",
            "circle",
            "page/",
            "page/index.html",
            "%00",
        )
        assert {path: status(path) for path in led} == dict.fromkeys(led, 404)
        port = address.rstrip("/").rpartition(":")[2]
        assert status("tables/a.csv", Host=f"localhost:{port}") == 200
        assert status("tables/a.csv", Host=f"page.example:{port}") == 403
        assert status("tables/a.csv", Origin="http://page.example") == 403
        assert status("tables/a.csv", Origin=address.rstrip("/")) == 200


def test_a_password_stays_until_others_could_read_it(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, temporary_settings

    from pipelines.serve import keep_password

    path = tmp_path / "serve.password"
    first = keep_password(path)
    assert keep_password(path) == first
    assert len(first) > 30
    path.chmod(0o644)
    second = keep_password(path)
    assert second != first
    assert path.read_text() == f"{second}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "someone:chosen"}):
        assert keep_password(path) == "someone:chosen"
    assert path.read_text() == "someone:chosen\n"
