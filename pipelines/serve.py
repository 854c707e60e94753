"""Start a server, the pool `local`, its deployments and one worker on this machine, until Ctrl-C.

Reads a workspace with its prefect.yaml. The server keeps its data in PREFECT_HOME (its own SQLite, or the PostgreSQL of
PREFECT_API_DATABASE_CONNECTION_URL); no process is left when this one has ended, however it ended. A deployment is code
that the worker runs: only who can read the password's file can make one (`loopback.py`).
"""

import os
import platform
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import typer
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    get_current_settings,
    temporary_settings,
)
from prefect.workers.process import ProcessWorker

from pipelines import LEASES_ON_DISK, TELEMETRY_OFF, FlowError
from pipelines.cleanup import crash_runs_of_worker
from pipelines.documents import read_yaml
from pipelines.locks import hold_lock_file, visible_gpus
from pipelines.loopback import HOST, own_origins, serve_reports
from pipelines.process_tree import ProgramGroup, catch_signals, end_orphans, find_flow
from pipelines.workspace import find_workspace

PREFECT = (sys.executable, "-m", "prefect")
# `prefect server start` runs an application of its own only; the warnings go into server.log.
SERVER = (sys.executable, "-m", "uvicorn", "--factory", "pipelines.loopback:create_app", "--log-level", "warning")
PASSWORD = "serve.password"  # in PREFECT_HOME: user and password of the API, as Prefect wants to be told them
START_SECONDS = 120.0
WORKSPACE = "PIPELINES_WORKSPACE"
POOL = "local"
GPU_LIMIT = "gpu"
DEAD_RUN = Path(__file__).with_name("deployments") / "automations" / "dead-run.yaml"
REQUEST_SECONDS = 120  # on SQLite a writer now and then waits for 60 s, and a request for it
NEXT_STEPS = """
Prefect:  {address} (it asks for the password: all of {password})
reports:  {site}
          deployments: {deployments}
          {limit}

in another terminal:
  {export}
  prefect deployment run reproduce/reproduce-local --watch

Ctrl-C ends the server, the worker and what it runs.
"""


def serve(
    port: Annotated[int, typer.Option(min=1, max=65534)] = 4200,
    workspace: str | None = None,
    *,
    say: Callable[[str], None] = typer.echo,
) -> None:
    """Start a server, the pool, the deployments and a worker on this machine, until Ctrl-C.

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
        try:  # two servers on one SQLite file would schedule everything twice
            stack.enter_context(hold_lock_file(home / "serve.lock", f"{address} {find_flow()}\n"))
        except BlockingIOError as error:
            other, process, *_ = [*str(error).split(), "an unknown address", "?"]
            use = f"use it: {_export(other, home / PASSWORD)} or end it first"
            raise FlowError(f"already serving at {other} (process {process}, home {home}); {use}") from None
        _check_port(port, address)
        site = stack.enter_context(serve_reports(folder / "reports", port + 1))
        # The worker alone knows the workspace: what is set while deploying is written into the deployments.
        inherited = {name: value for name, value in os.environ.items() if name != WORKSPACE}
        defaults = {**LEASES_ON_DISK, "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_SECONDS)}
        password = keep_password(home / PASSWORD)
        server = {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": password}
        programs = ProgramGroup(folder, {**defaults, **inherited, **TELEMETRY_OFF, **server})
        log = stack.enter_context((home / "server.log").open("w", encoding="utf-8", buffering=1))
        stack.enter_context(set_on_signals(programs.over))
        stack.callback(programs.end)
        say(f"starting the server at {address}, its log in {log.name} …")
        words = ["--app-dir", str(Path(__file__).parent.parent), "--host", HOST, "--port", str(port)]
        guards = {
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
        }
        programs.start("server", [*SERVER, *words], lambda line: log.writelines([line, "\n"]), **guards)
        deadline = time.monotonic() + START_SECONDS
        while not (is_up := _answers(address)) and not programs.over.wait(0.2):
            if time.monotonic() > deadline:
                cure = "is the machine overloaded? try again"
                raise FlowError(f"no server at {address} after {START_SECONDS:.0f} s; {cure}")
        if is_up:
            end_orphans(folder)
            with _connect(address, password, programs.over) as client:
                crash_runs_of_worker(client, worker, POOL)
                ensure_pool(client)
                limit = ensure_gpu_limit(client, len(visible_gpus()))
                ensure_dead_run_automation(client)
                names = ", ".join(deploy(client, programs, prefect_file))
                if not programs.over.is_set():
                    export, file = _export(address, home / PASSWORD), home / PASSWORD
                    found = {"site": site, "deployments": names, "limit": limit}
                    say(NEXT_STEPS.format(address=address, password=file, export=export, **found))
                    words = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
                    environment = {WORKSPACE: str(folder), "PIPELINES_REPORT_URL": site}
                    end_worker = programs.start("worker", [*PREFECT, *words, "--name", worker], say, **environment)
                    programs.over.wait()
                    say("ending the worker and the server …")
                    end_worker()
                    if not programs.failed:
                        crash_runs_of_worker(client, worker, POOL)
    if programs.failed:
        name, result = programs.failed
        last = next((line.strip() for line in reversed(result.tail) if line.strip()), "it said nothing")
        raise FlowError(f"the {name} ended ({result}), so everything was ended; its last line: {last}")


def keep_password(path: Path) -> str:
    """Return user and password of the API: those of Prefect's settings, of an earlier start, or random ones.

    They are kept in a file that the user alone can read; what others could read is not used again.
    """
    own, known = get_current_settings().server.api.auth_string, ""
    if path.exists() and not path.stat().st_mode & 0o077:
        known = path.read_text(encoding="utf-8").strip()
    password = own.get_secret_value() if own else known or f"admin:{secrets.token_urlsafe(24)}"
    if password != known:
        path.unlink(missing_ok=True)
        with open(path, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
            file.write(f"{password}\n")
    return password


def _export(address: str, password: Path) -> str:
    """Return the line for a shell whose programs are to use the server."""
    return f'export PREFECT_API_URL={address}/api PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(password))})"'


def _check_port(port: int, address: str) -> None:
    """Raise FlowError for a port that is taken."""
    try:
        socket.create_server((HOST, port)).close()
    except PermissionError:
        raise FlowError(f"port {port} needs rights that you lack; choose another: make serve PORT=4300") from None
    except OSError:
        cure = f"make serve PORT={port + 100}"
        if not _answers(address):
            raise FlowError(f"port {port} is taken by another program; choose another: {cure}") from None
        use = f"use it: export PREFECT_API_URL={address}/api, or choose another port: {cure}"
        raise FlowError(f"another Prefect server answers at {address}; {use}") from None


def _answers(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{address}/api/health", timeout=2, trust_env=False).content.strip() == b"true"
    return False


@contextmanager
def _connect(address: str, password: str, over: threading.Event) -> Iterator[SyncPrefectClient]:
    """Yield a client; a call that finds no server is no fault of its own where the server has ended, or is to end."""
    settings = {PREFECT_API_URL: f"{address}/api", PREFECT_API_AUTH_STRING: password}
    try:
        with (
            temporary_settings({**settings, PREFECT_API_REQUEST_TIMEOUT: REQUEST_SECONDS}),
            get_client(sync_client=True) as client,
        ):
            yield client
    except (httpx.HTTPError, PrefectException) as error:
        if not over.wait(1):  # the end of the server is noticed by another thread
            raise FlowError(f"the server does not answer as it should: {error}") from error


def ensure_pool(client: SyncPrefectClient) -> None:
    """Make the process pool where it is missing."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Processes of one host that share one workspace."
        pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template, description=description)
        client.create_work_pool(pool)
    if pool.type != "process":
        cure = "delete it, or use another PREFECT_HOME"
        raise FlowError(f"the work pool {POOL!r} is of type {pool.type}, not process; {cure}")


def ensure_gpu_limit(client: SyncPrefectClient, gpus: int) -> str:
    """Make the limit where it is missing, one slot a GPU; return a line on it."""

    def count(number: int, noun: str) -> str:
        return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"

    wanted = max(gpus, 1)
    try:
        slots, note = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit, ", as it was"
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=wanted))
        slots, note = wanted, ""
    cure = "" if slots == wanted else f"; change it with: prefect gcl update {GPU_LIMIT} --limit {wanted}"
    return f"limit {GPU_LIMIT!r}: {count(slots, 'slot')}{note} ({count(gpus, 'GPU')} found{cure})"


def ensure_dead_run_automation(client: SyncPrefectClient) -> None:
    """Make the automation that crashes runs without a heartbeat, where none of its name is there."""
    automation = AutomationCore.model_validate(read_yaml(DEAD_RUN))
    if not client.read_automations_by_name(automation.name):
        client.create_automation(automation)


def deploy(client: SyncPrefectClient, programs: ProgramGroup, prefect_file: Path) -> list[str]:
    """Deploy `prefect_file` to the server and return the names. A schedule that was switched on stays on."""
    active = {schedule.id for one in client.read_deployments() for schedule in one.schedules if schedule.active}
    result = programs.run([*PREFECT, "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)])
    if result.reason == "stopped":
        return []
    if result.code:
        lines = [line.strip(" │╭╰─╮╯") for line in result.tail]
        raise FlowError(f"{prefect_file.name} could not be deployed: {' '.join(filter(None, lines[-6:]))}")
    deployments = client.read_deployments()
    for deployment in deployments:
        for schedule in deployment.schedules:
            if not schedule.active and schedule.id in active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    return sorted(f"{client.read_flow(one.flow_id).name}/{one.name}" for one in deployments)


def set_on_signals(over: threading.Event) -> AbstractContextManager[None]:
    """Set `over` within the block on Ctrl-C, TERM and a closed terminal."""
    return catch_signals(lambda _: over.set())
