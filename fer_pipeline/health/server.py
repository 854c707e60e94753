"""The Prefect server that PREFECT_API_URL names in, whether it can carry the flows out. It is asked over HTTP alone.

Source: the REST API of Prefect 3.8. Where no address is set, nobody is asked.
"""

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

from fer_pipeline.health.finding import Finding, Place
from fer_pipeline.health.gpus import Gpus, look
from fer_pipeline.health.versions import Version, installed

SECONDS = 3.0
GPU_LIMIT = "gpu"
SKEW_SECONDS = 10.0


class ServerError(Exception):
    """The server did not answer as one of Prefect's does."""


def ask(place: Place, path: str, body: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The JSON that the server answers, and the date that it put on it; a `body` is posted."""
    address = place.environment["PREFECT_API_URL"].rstrip("/") + path
    headers = {"Accept": "application/json", "Content-Type": "application/json", **_credentials(place)}
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(address, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.loads(answer.read() or b"null"), answer.headers.get("Date", "")
    except urllib.error.HTTPError as error:
        raise ServerError(f"{address} answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ServerError(f"{address} does not answer: {reason}") from None


def _credentials(place: Place) -> dict[str, str]:
    if key := place.environment.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if pair := place.environment.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def server(place: Place) -> Finding:
    """Whether there is one."""
    address = place.environment.get("PREFECT_API_URL")
    if not address:
        return Finding("server", "ok", "PREFECT_API_URL is not set; a flow then starts a server of its own")
    start = time.monotonic()
    cure = "start it (make serve, or prefect server start), or correct PREFECT_API_URL, which ends with /api"
    try:
        health, _ = ask(place, "/health")
    except ServerError as error:
        return Finding("server", "problem", str(error), cure)
    if health is not True:
        return Finding("server", "problem", f"{address}/health answers {health!r}, not true", cure)
    return Finding("server", "ok", f"{address} answers in {1000 * (time.monotonic() - start):.0f} ms")


def server_version(place: Place, *, version: Version = installed) -> Finding:
    """A server and its clients are to be of one minor version."""

    def judge() -> Finding:
        theirs, ours = str(ask(place, "/admin/version")[0]), version("prefect")
        if ours is None:
            cure = "pip install -e '.[flows]'"
            return Finding("server_version", "warning", f"the server is {theirs}, no client is installed here", cure)
        found = f"the server is {theirs}, the client {ours}"
        if theirs == ours:
            return Finding("server_version", "ok", found)
        level = "warning" if theirs.split(".")[:2] == ours.split(".")[:2] else "problem"
        return Finding("server_version", level, found, f"pip install prefect=={ours} where the server runs")

    return _answered("server_version", place, judge)


def gpu_limit(place: Place, *, gpus: Callable[[], Gpus] = look) -> Finding:
    """The slots that stages with `meta: {gpu: true}` hold; without the limit no such stage starts."""

    def judge() -> Finding:
        count = len(gpus().names)
        limits = {limit["name"]: limit for limit in ask(place, "/v2/concurrency_limits/filter", {"limit": 200})[0]}
        if GPU_LIMIT not in limits:
            found = f"the server has no limit {GPU_LIMIT!r}"
            if count == 0:
                return Finding("gpu_limit", "ok", f"{found}; this machine has no GPU to count")
            cure = f"prefect global-concurrency-limit create {GPU_LIMIT} --limit {count} (the GPUs of all hosts)"
            return Finding("gpu_limit", "problem", found, cure)
        limit = limits[GPU_LIMIT]
        found = f"{limit['active_slots']} of {limit['limit']} slots are taken"
        if not limit["active"]:
            cure = f"prefect global-concurrency-limit enable {GPU_LIMIT}"
            return Finding("gpu_limit", "problem", "the limit is switched off: stages share GPUs", cure)
        if limit["limit"] < count:
            cure = f"prefect global-concurrency-limit update {GPU_LIMIT} --limit {count}"
            return Finding("gpu_limit", "warning", f"{found}, this machine alone has {count} GPUs", cure)
        return Finding("gpu_limit", "ok", found)

    return _answered("gpu_limit", place, judge)


def workers(place: Place) -> Finding:
    """Who would run what is scheduled: pools, and the workers that were heard of."""

    def judge() -> Finding:
        pools = [pool for pool in ask(place, "/work_pools/filter", {})[0] if pool["type"] != "prefect-agent"]
        if not pools:
            cure = "make serve, or prefect work-pool create NAME --type process"
            return Finding("workers", "warning", "the server has no work pool", cure)
        online: dict[str, int] = {}
        for pool in pools:
            name = urllib.parse.quote(pool["name"], safe="")
            known = ask(place, f"/work_pools/{name}/workers/filter", {})[0]
            online[pool["name"]] = sum(worker["status"] == "ONLINE" for worker in known)
        found = ", ".join(f"{name}: {count} workers online" for name, count in online.items())
        if paused := [pool["name"] for pool in pools if pool.get("is_paused")]:
            return Finding(
                "workers", "warning", f"{found}; {paused[0]} is paused", f"prefect work-pool resume {paused[0]}"
            )
        if idle := [name for name, count in online.items() if not count]:
            level = "warning" if any(online.values()) else "problem"
            cure = f"prefect worker start --pool {idle[0]}"
            return Finding("workers", level, f"{found}; what is scheduled there waits", cure)
        return Finding("workers", "ok", found)

    return _answered("workers", place, judge)


def server_clock(place: Place, *, now: Callable[[], float] = time.time) -> Finding:
    """Leases and schedules are counted by the server's clock."""

    def judge() -> Finding:
        date = ask(place, "/health")[1]
        if not date:
            return Finding("server_clock", "warning", "the server puts no date on its answers", "look at its proxy")
        skew = parsedate_to_datetime(date).timestamp() - now()
        if abs(skew) > SKEW_SECONDS:
            found = f"it is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
            return Finding("server_clock", "warning", found, "keep both by NTP (timedatectl set-ntp true)")
        return Finding("server_clock", "ok", "agrees with this machine's")

    return _answered("server_clock", place, judge)


def _answered(name: str, place: Place, judge: Callable[[], Finding]) -> Finding:
    if not place.environment.get("PREFECT_API_URL"):
        return Finding(name, "ok", "no server is named")
    try:
        return judge()
    except ServerError as error:
        return Finding(name, "warning", f"cannot be told: {error}", "mend what is said of the server first")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        told = f"the answer is none of Prefect 3.8's ({type(error).__name__} {error})"
        return Finding(
            name, "warning", told, "see that PREFECT_API_URL ends with /api and names a server of Prefect 3.8"
        )
