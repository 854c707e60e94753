"""Shared ground of the tests: one thread, no network, the sample faces where they are present, a Prefect server.

The server is one a test process, in a home of its own, on a free port of the loopback.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

START_SECONDS = 120
# What waits a minute on a quiet server waits a second here: schedules, slots of dead holders, workers gone.
BRISK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "1",
}
STEADY = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_API_REQUEST_TIMEOUT": "120",  # on SQLite a writer now and then waits for 60 s
}
ROOT = Path(__file__).resolve().parent.parent


# Files that take minutes begin first, so that both processes end at about the same time.
LONGEST = ("walk/test_graph.py", "pipelines/test_faults.py", "pipelines/test_refresh.py", "pipelines/test_reproduce.py")
LONGEST += ("pipelines/test_serve.py", "stages/test_resume.py", "health/test_heal.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; the rest in their order."""
    places = {str(ROOT / "tests" / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def sample_faces() -> Path:
    """The folder of sample photographs, which the project does not ship."""
    folder = Path(os.environ.get("FER_SAMPLE_FACES", ROOT.parent / "shared" / "faces"))
    if not folder.is_dir():
        pytest.skip(f"no sample faces in {folder}; set FER_SAMPLE_FACES")
    return folder


def port_of_nobody() -> int:
    """A port of the loopback that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prefect_environment(home: Path) -> dict[str, str]:
    """The environment without the user's Prefect settings; what is Prefect's own lies in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        **BRISK,
        **STEADY,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_COLOR": "1",
    }


def wait_for_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the API answers; an end of the process before that is an error with its last words."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
            time.sleep(0.1)
    raise AssertionError(f"no server at {url} after {START_SECONDS} s:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Path], dict[str, str]]:
    """Makes the environment of programs whose Prefect home is a given folder."""
    return prefect_environment


@pytest.fixture
def free_port() -> int:
    """A port of the loopback that nobody holds now."""
    return port_of_nobody()


@pytest.fixture(scope="session")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of programs that speak with `server`: its home and its address."""
    home = tmp_path_factory.mktemp("prefect")
    return {**prefect_environment(home), "PREFECT_API_URL": f"http://127.0.0.1:{port_of_nobody()}/api"}


@pytest.fixture(scope="session")
def server(server_environment: dict[str, str]) -> Iterator[str]:
    """The URL of the API of a bare server: no pool, no limit, no deployment; ended when the tests are."""
    url = server_environment["PREFECT_API_URL"]
    port = url.removesuffix("/api").rpartition(":")[2]
    log = Path(server_environment["PREFECT_HOME"]) / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=server_environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_health(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
