"""A small HTTP server that stands for Prefect's: healthy, of another version, without the limit, slow to be there."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.health import prefect_server
from fer_pipeline.health.machine import Gpus
from fer_pipeline.health.software import CheckContext, Finding

TWO_GPUS = Gpus(2, "580", ("H", "H"), ((9, 0), (9, 0)), (80 << 30, 80 << 30))
POOL = {"name": "local", "type": "process", "is_paused": False}
LIMIT = {"name": "gpu", "limit": 2, "active": True, "active_slots": 1}


class Stand(ThreadingHTTPServer):
    """Answers what a test put into `answers`; remembers who asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {
            "/api/health": True,
            "/api/admin/version": "3.8.8",
            "/api/v2/concurrency_limits/filter": [LIMIT],
            "/api/work_pools/filter": [POOL],
            "/api/work_pools/local/workers/filter": [{"status": "ONLINE"}, {"status": "OFFLINE"}],
        }
        self.authorized: set[str | None] = set()
        self.date: str | None = None


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        stand = self.server
        assert isinstance(stand, Stand)
        stand.authorized.add(self.headers.get("Authorization"))
        known = self.path in stand.answers
        self.send_response_only(200 if known else 404)
        if stand.date != "":
            self.send_header("Date", stand.date or self.date_time_string())
        self.end_headers()
        self.wfile.write(json.dumps(stand.answers.get(self.path)).encode())

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server, "query_gpus", lambda: TWO_GPUS)
    monkeypatch.setattr(prefect_server, "installed_version", lambda _: "3.8.8")


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def context(stand: Stand, tmp_path: Path) -> CheckContext:
    return CheckContext(tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{stand.server_port}/api"})


def everything(context: CheckContext) -> dict[str, Finding]:
    return {
        "server": prefect_server.check_server(context),
        "server_version": prefect_server.check_server_version(context),
        "gpu_limit": prefect_server.check_gpu_limit(context),
        "workers": prefect_server.check_workers(context),
        "server_clock": prefect_server.check_server_clock(context),
    }


def test_a_healthy_server(context: CheckContext) -> None:
    found = everything(context)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["workers"].message == "local: 1 workers online"
    assert found["gpu_limit"].message == "1 of 2 slots are taken"


def test_nobody_is_asked_where_no_address_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server.urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    assert {one.level for one in everything(CheckContext(tmp_path, environment={})).values()} == {"ok"}


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = everything(CheckContext(tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}))
    assert found.pop("server").level == "problem"
    assert {one.level for one in found.values()} == {"warning"}


def test_a_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        context = CheckContext(
            tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/api"}
        )
        finding = prefect_server.check_server(context)
    assert (finding.level, "timed out" in finding.message) == ("problem", True)


@pytest.mark.parametrize("health", [False, None, {"detail": "x"}])
def test_a_server_that_is_not_well(stand: Stand, context: CheckContext, health: object) -> None:
    stand.answers["/api/health"] = health
    assert prefect_server.check_server(context).level == "problem"


@pytest.mark.parametrize(
    ("theirs", "ours", "level"),
    [
        ("3.8.8", "3.8.8", "ok"),
        ("3.8.9", "3.8.8", "warning"),
        ("3.4.1", "3.8.8", "problem"),
        ("3.8.8", None, "warning"),
    ],
)
def test_version(
    stand: Stand,
    context: CheckContext,
    theirs: str,
    ours: str | None,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_server, "installed_version", lambda _: ours)
    stand.answers["/api/admin/version"] = theirs
    assert prefect_server.check_server_version(context).level == level


@pytest.mark.parametrize(
    ("limits", "gpus", "level", "words"),
    [
        ([], TWO_GPUS, "problem", "no limit 'gpu'"),
        ([{**LIMIT, "name": "other"}], Gpus(), "ok", "no GPU to count"),
        ([{**LIMIT, "active": False}], TWO_GPUS, "problem", "switched off"),
        ([{**LIMIT, "limit": 1}], TWO_GPUS, "warning", "alone has 2 GPUs"),
        ([LIMIT], TWO_GPUS, "ok", "1 of 2"),
        ([{"title": "gpu"}], TWO_GPUS, "warning", "none of Prefect 3.8's"),
    ],
)
def test_gpu_limit(
    stand: Stand,
    context: CheckContext,
    limits: list[Any],
    gpus: Gpus,
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefect_server, "query_gpus", lambda: gpus)
    stand.answers["/api/v2/concurrency_limits/filter"] = limits
    finding = prefect_server.check_gpu_limit(context)
    assert finding.level == level
    assert words in finding.message


@pytest.mark.parametrize(
    ("pools", "workers", "level", "words"),
    [
        ([], [], "warning", "no work pool"),
        ([POOL], [], "problem", "local: 0 workers online"),
        ([POOL], ["OFFLINE"], "problem", "waits"),
        ([{**POOL, "is_paused": True}], ["ONLINE"], "warning", "local is paused"),
        ([POOL, {**POOL, "name": "a b"}], ["ONLINE"], "warning", "a b: 0 workers online"),
    ],
)
def test_workers(
    stand: Stand, context: CheckContext, pools: list[Any], workers: list[str], level: str, words: str
) -> None:
    stand.answers["/api/work_pools/filter"] = pools
    stand.answers["/api/work_pools/local/workers/filter"] = [{"status": status} for status in workers]
    stand.answers["/api/work_pools/a%20b/workers/filter"] = []
    finding = prefect_server.check_workers(context)
    assert finding.level == level
    assert words in finding.message


def test_clock(stand: Stand, context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.date = "Sun, 22 Nov 2026 12:00:00 GMT"
    noon = 1795348800.0  # date -u -d 2026-11-22T12:00 +%s
    monkeypatch.setattr(prefect_server.time, "time", lambda: noon + 2)
    assert prefect_server.check_server_clock(context).level == "ok"
    monkeypatch.setattr(prefect_server.time, "time", lambda: noon - 90)
    finding = prefect_server.check_server_clock(context)
    assert (finding.level, finding.message) == ("warning", "it is 90 s ahead of this machine's")
    stand.date = ""
    assert prefect_server.check_server_clock(context).level == "warning"


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, None),
        ({"PREFECT_API_KEY": "key"}, "Bearer key"),
        ({"PREFECT_API_AUTH_STRING": "a:b"}, "Basic YTpi"),  # printf a:b | base64
    ],
)
def test_credentials(stand: Stand, context: CheckContext, environment: dict[str, str], header: str | None) -> None:
    assert (
        prefect_server.check_server(
            CheckContext(context.root, environment={**context.environment, **environment})
        ).level
        == "ok"
    )
    assert stand.authorized == {header}
