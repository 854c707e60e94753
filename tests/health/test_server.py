"""A small HTTP server that stands for Prefect's: healthy, of another version, without the limit, slow to be there."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.health import server
from fer_pipeline.health.finding import Finding, Place
from fer_pipeline.health.gpus import Gpus

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


@pytest.fixture
def stand() -> Iterator[Stand]:
    with Stand() as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def place(stand: Stand, tmp_path: Path) -> Place:
    return Place(tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{stand.server_port}/api"})


def everything(place: Place) -> dict[str, Finding]:
    findings = (
        server.server(place),
        server.server_version(place, version=lambda _: "3.8.8"),
        server.gpu_limit(place, gpus=lambda: TWO_GPUS),
        server.workers(place),
        server.server_clock(place),
    )
    return {one.name: one for one in findings}


def test_a_healthy_server(place: Place) -> None:
    found = everything(place)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["workers"].found == "local: 1 workers online"
    assert found["gpu_limit"].found == "1 of 2 slots are taken"


def test_nobody_is_asked_where_no_address_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    assert {one.level for one in everything(Place(tmp_path, environment={})).values()} == {"ok"}


def test_a_server_that_is_down(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = everything(Place(tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}))
    assert found.pop("server").level == "problem"
    assert {one.level for one in found.values()} == {"warning"}


def test_a_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = Place(tmp_path, environment={"PREFECT_API_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/api"})
        found = server.server(place)
    assert (found.level, "timed out" in found.found) == ("problem", True)


@pytest.mark.parametrize("health", [False, None, {"detail": "x"}])
def test_a_server_that_is_not_well(stand: Stand, place: Place, health: object) -> None:
    stand.answers["/api/health"] = health
    assert server.server(place).level == "problem"


@pytest.mark.parametrize(
    ("theirs", "ours", "level"),
    [
        ("3.8.8", "3.8.8", "ok"),
        ("3.8.9", "3.8.8", "warning"),
        ("3.4.1", "3.8.8", "problem"),
        ("3.8.8", None, "warning"),
    ],
)
def test_version(stand: Stand, place: Place, theirs: str, ours: str | None, level: str) -> None:
    stand.answers["/api/admin/version"] = theirs
    assert server.server_version(place, version=lambda _: ours).level == level


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
def test_gpu_limit(stand: Stand, place: Place, limits: list[Any], gpus: Gpus, level: str, words: str) -> None:
    stand.answers["/api/v2/concurrency_limits/filter"] = limits
    found = server.gpu_limit(place, gpus=lambda: gpus)
    assert found.level == level
    assert words in found.found


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
def test_workers(stand: Stand, place: Place, pools: list[Any], workers: list[str], level: str, words: str) -> None:
    stand.answers["/api/work_pools/filter"] = pools
    stand.answers["/api/work_pools/local/workers/filter"] = [{"status": status} for status in workers]
    stand.answers["/api/work_pools/a%20b/workers/filter"] = []
    found = server.workers(place)
    assert found.level == level
    assert words in found.found


def test_clock(stand: Stand, place: Place) -> None:
    stand.date = "Sun, 22 Nov 2026 12:00:00 GMT"
    noon = 1795348800.0  # date -u -d 2026-11-22T12:00 +%s
    assert server.server_clock(place, now=lambda: noon + 2).level == "ok"
    found = server.server_clock(place, now=lambda: noon - 90)
    assert (found.level, found.found) == ("warning", "it is 90 s ahead of this machine's")
    stand.date = ""
    assert server.server_clock(place).level == "warning"


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, None),
        ({"PREFECT_API_KEY": "key"}, "Bearer key"),
        ({"PREFECT_API_AUTH_STRING": "a:b"}, "Basic YTpi"),  # printf a:b | base64
    ],
)
def test_credentials(stand: Stand, place: Place, environment: dict[str, str], header: str | None) -> None:
    assert server.server(Place(place.root, environment={**place.environment, **environment})).level == "ok"
    assert stand.authorized == {header}
