"""`make serve`: a server, the pool `local`, its deployments and one worker on the loopback, until Ctrl-C.

In: a workspace with its prefect.yaml. Out: a server in PREFECT_HOME (its own SQLite, or the PostgreSQL of
PREFECT_API_DATABASE_CONNECTION_URL), and no process of it left when this one has ended, however it ended.
"""

import fcntl
import os
import platform
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, get_current_settings, temporary_settings

from pipelines import server_setup
from pipelines.errors import FlowError
from pipelines.gpus import visible_gpus
from pipelines.programs import Programs, signals_end
from pipelines.report_site import report_site
from pipelines.supervised import end_leftovers
from pipelines.workspace import find_workspace

HOST = "127.0.0.1"
PREFECT = (sys.executable, "-m", "prefect")
START_SECONDS = 120.0
WORKSPACE = "PIPELINES_WORKSPACE"
QUIET = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
REQUEST_SECONDS = 120  # on SQLite a writer now and then waits for 60 s, and a request for it
# Slots that are only remembered in the server's memory stay taken for ever when it ends before their holders.
STEADY = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
}


def serve(port: int = 4200, workspace: str | None = None, say: Callable[[str], None] = typer.echo) -> None:
    """Serves until a signal ends it.

    Args:
        port: The server's; the reports are on the next one.
        workspace: The folder of dvc.yaml and prefect.yaml. None: PIPELINES_WORKSPACE, or the working directory.
        say: Gets each line for the person.

    Raises:
        FlowError: the port is taken, a server of the same home runs already, or one of the programs ended.
    """
    folder, address = find_workspace(workspace), f"http://{HOST}:{port}"
    prefect_file = folder / "prefect.yaml"
    if not prefect_file.is_file():
        raise FlowError(f"{folder} has no prefect.yaml, which names the deployments; copy it from the project")
    home, worker = get_current_settings().home, platform.node()
    with ExitStack() as stack:
        stack.enter_context(_one_of_a_home(home, address))
        _refuse_taken_port(port, address)
        site = stack.enter_context(report_site(folder / "reports", port + 1))
        # The worker alone knows the workspace: what is set while deploying is written into the deployments.
        common = {name: value for name, value in os.environ.items() if name != WORKSPACE}
        programs = Programs(folder, {**STEADY, **common, **QUIET, "PREFECT_API_URL": f"{address}/api"})
        log = stack.enter_context((home / "server.log").open("w", encoding="utf-8", buffering=1))
        stack.enter_context(signals_end(programs.over))
        stack.callback(programs.end)
        say(f"starting the server at {address}, its log in {log.name} …")
        server = ["server", "start", "--host", HOST, "--port", str(port)]
        programs.start("server", [*PREFECT, *server], lambda line: log.writelines([line, "\n"]))
        if _healthy(address, programs):
            end_leftovers(folder)
            with _client(address) as client, _server_may_fall(programs):
                server_setup.crash_lost_runs(client, worker)
                told = _set_up(client, programs, prefect_file)
                if not programs.over.is_set():
                    say(_what_next(address, site, told))
                    words = ["worker", "start", "--pool", server_setup.POOL, "--type", "process", "--limit", "1"]
                    places = {WORKSPACE: str(folder), "PIPELINES_REPORT_URL": site}
                    programs.start("worker", [*PREFECT, *words, "--name", worker], say, **places)
                    programs.over.wait()
                    say("ending the worker and the server …")
                    programs.end_one("worker")
                    if not programs.fallen:
                        server_setup.crash_lost_runs(client, worker)
    if programs.fallen:
        name, ended = programs.fallen
        last = next((line.strip() for line in reversed(ended.tail) if line.strip()), "it said nothing")
        raise FlowError(f"the {name} ended ({ended.words}), so everything was ended; its last line: {last}")


@contextmanager
def _one_of_a_home(home: Path, address: str) -> Iterator[None]:
    """Holds the home, since two servers on one SQLite file schedule everything twice. Ends with the process."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            there, process, *_ = [*file.read().split(), "an address yet to be told", "?"]
            raise FlowError(
                f"already serving at {there} (process {process}, home {home}); "
                f"use it: export PREFECT_API_URL={there}/api, or end it first"
            ) from None
        file.truncate(0)
        file.write(f"{address} {os.getpid()}\n")
        file.flush()
        yield


def _refuse_taken_port(port: int, address: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is no hindrance
        try:
            probe.bind((HOST, port))
            return
        except PermissionError:
            raise FlowError(f"port {port} needs rights that you lack; choose another: make serve PORT=4300") from None
        except OSError:
            pass
    if _answers(address):
        raise FlowError(
            f"another Prefect server answers at {address}; use it: export PREFECT_API_URL={address}/api, or choose "
            f"another port: make serve PORT={port + 100}"
        )
    raise FlowError(f"port {port} is taken by another program; choose another: make serve PORT={port + 100}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=2) as answer:
            return answer.read().strip() == b"true"
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _healthy(address: str, programs: Programs) -> bool:
    """Waits for the server; False where all was over before."""
    deadline = time.monotonic() + START_SECONDS
    while not programs.over.wait(0.2):
        if _answers(address):
            return True
        if time.monotonic() > deadline:
            raise FlowError(f"no server at {address} after {START_SECONDS:.0f} s; is the machine overloaded? try again")
    return False


@contextmanager
def _client(address: str) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: f"{address}/api", PREFECT_API_REQUEST_TIMEOUT: REQUEST_SECONDS}),
        get_client(sync_client=True) as client,
    ):
        yield client


@contextmanager
def _server_may_fall(programs: Programs) -> Iterator[None]:
    """A call that finds no server is no fault of its own where the server has ended, or is to end."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        if not programs.over.wait(1):  # the end of the server is told by another thread
            raise FlowError(f"the server does not answer as it should: {error}") from error


def _set_up(client: SyncPrefectClient, programs: Programs, prefect_file: Path) -> list[str]:
    server_setup.ensure_pool(client)
    limit = server_setup.ensure_gpu_limit(client, len(visible_gpus()))
    server_setup.ensure_dead_run_automation(client)
    names = server_setup.deploy(client, programs, prefect_file)
    return [f"deployments: {', '.join(names)}", limit]


def _what_next(address: str, site: str, told: list[str]) -> str:
    return "\n".join(
        [
            "",
            f"Prefect:  {address}",
            f"reports:  {site}",
            *(f"          {line}" for line in told),
            "",
            "in another terminal:",
            f"  export PREFECT_API_URL={address}/api",
            "  prefect deployment run reproduce/local --watch",
            "",
            "Ctrl-C ends the server, the worker and what it runs.",
            "",
        ]
    )
