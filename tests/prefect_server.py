"""A real Prefect server for the tests: its settings, its start and end, and what it answers.

One a test process, in a home of its own, on a free port of the loopback.
"""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START_SECONDS = 120
BUSY_SECONDS = 150
LATE_SECONDS = 60
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
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


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


class Server:
    """A bare server: no pool, no limit, no deployment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.url = environment["PREFECT_API_URL"]
        self._log = Path(environment["PREFECT_HOME"]) / "server.log"
        port = self.url.removesuffix("/api").rpartition(":")[2]
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until the API answers; an end of the process before that is an error with its last words."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self._process.poll() is None, f"the server ended:\n{self._log.read_text()[-3000:]}"
                time.sleep(0.1)
        raise AssertionError(f"no server at {self.url} after {START_SECONDS} s:\n{self._log.read_text()[-3000:]}")

    def end(self) -> None:
        """Gently first; nothing where it has ended already."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Api:
    """What the server at an address answers, with the words that a server with a password wants."""

    def __init__(self, url: str, password: str | None = None) -> None:
        self.url, self.headers = url, {"Content-Type": "application/json"}
        if password:
            self.headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
            self.headers["Prefect-Csrf-Client"] = client = "tests"
            self.headers["Prefect-Csrf-Token"] = self.ask(f"/csrf-token?client={client}")["token"]

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """A GET without a body, else a POST, if no other method is named."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, self.headers, method=method)
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=BUSY_SECONDS) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                # Prefect's word for a locked SQLite; its own clients try again, too.
                if error.code != 503 or time.monotonic() > deadline:
                    raise AssertionError(f"{path}: {error}: {error.read()[:500]!r}") from error
                time.sleep(0.5)

    def run(self, run_id: str) -> dict[str, Any]:
        """A run of a flow."""
        return self.ask(f"/flow_runs/{run_id}")

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        """The tasks of a run that has ended, as soon as the server knows how each of them did.

        It hears of tasks later than of their run: at first there may be too few, and some without a state.
        """
        deadline = time.monotonic() + LATE_SECONDS
        message = self.run(run_id)["state"]["message"] or ""
        told, current = re.search(r"(\d+) stages?:", message), re.search(r"(\d+) Cached", message)
        expected = (int(told[1]) if told else 0) - (int(current[1]) if current else 0)  # what is up to date has no task
        while True:
            found = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
            whole = [task for task in found if task["state"] and task["state"]["type"] in ENDS]
            if len(whole) == len(found) >= expected:
                return whole
            assert time.monotonic() < deadline, (
                f"tasks that never ended: {[task for task in found if task not in whole]}"
            )
            time.sleep(0.2)

    def states(self, run_id: str) -> dict[str, str]:
        """How each stage of a run ended: those that were up to date by the table that it shows, the others by tasks."""
        tasks = {task["name"]: task["state"]["name"] for task in self.tasks(run_id)}
        rows = json.loads(self.artifacts(run_id).get("stages", {}).get("data", "[]"))
        return {row["stage"]: row["state"] for row in rows if row["state"] == "Cached"} | tasks

    def artifacts(self, run_id: str) -> dict[str, Any]:
        """What a run showed, by key."""
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return {one["key"]: one for one in found}
