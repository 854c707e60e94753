"""A Prefect server of the tests' own: one a test process, in a home of its own, on a free port of the loopback."""

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
SLOTS = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}


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
        **SLOTS,
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


def make_repository(folder: Path, files: dict[str, str], *, author: bool = True) -> Path:
    """A git repository with DVC in it, as `git init` and `dvc init` make it, with one commit of these files."""
    config = f"[core]\n    analytics = false\n    check_update = false\n    site_cache_dir = {folder}/.dvc/tmp/site\n"
    ignored = "/config.local\n/tmp\n/cache\n"
    for path, content in {".dvc/config": config, ".dvc/.gitignore": ignored, ".dvcignore": "", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content, encoding="utf-8")
    who = ["-c", "user.name=Someone", "-c", "user.email=someone@localhost"]
    for words in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *who, *words], cwd=folder, check=True)
    if author:
        for name, value in (("user.name", "Someone"), ("user.email", "someone@localhost")):
            subprocess.run(["git", "config", name, value], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def new_repository() -> Iterator[Callable[..., Path]]:
    """Makes repositories; the user's own settings of git mean nothing to them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [one for one in os.environ if one.startswith("GIT_")]:
            patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_NOSYSTEM", "1")
        yield make_repository
