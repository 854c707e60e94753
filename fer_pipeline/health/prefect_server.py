"""Check over HTTP that the Prefect server of PREFECT_API_URL can carry the flows.

Source: the REST API of Prefect 3.8. Where no address is set, no server is asked.
"""

import base64
import functools
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from fer_pipeline.core.documents import MAX_JSON, parse_json
from fer_pipeline.health.machine import query_gpus
from fer_pipeline.health.software import CheckContext, Finding, grade, installed_version

TIMEOUT_SECONDS = 3.0
GPU_LIMIT = "gpu"
MAX_SKEW_SECONDS = 10.0


def request(context: CheckContext, path: str, body: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Returns the JSON and the date of the server's answer, or raises a ConnectionError; a `body` is posted."""
    address = context.environment["PREFECT_API_URL"].rstrip("/") + path
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if user := context.environment.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    elif key := context.environment.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if body is not None:
        client = str(uuid.uuid4())
        with suppress(ConnectionError):  # a server need not ask for a token
            token = request(context, f"/csrf-token?client={client}")[0]["token"]
            headers |= {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": client}
    data = None if body is None else json.dumps(body).encode()
    try:
        question = urllib.request.Request(address, data=data, headers=headers)
        with urllib.request.urlopen(question, timeout=TIMEOUT_SECONDS) as answer:
            return parse_json(answer.read(MAX_JSON) or b"null"), answer.headers.get("Date", "")
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"{address} answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ConnectionError(f"{address} does not answer: {reason}") from None


def check_server(context: CheckContext) -> Finding:
    address, start = context.environment.get("PREFECT_API_URL"), time.monotonic()
    if not address:
        return Finding("ok", "PREFECT_API_URL is not set; a flow then starts a server of its own")
    advice = "start it (make serve, or prefect server start), or correct PREFECT_API_URL, which ends with /api"
    try:
        health, _ = request(context, "/health")
        request(context, "/admin/version")  # anyone is told the health
    except ConnectionError as error:
        if " 401 " in str(error):
            advice = "export PREFECT_API_AUTH_STRING, its user and password; make serve prints the line for it"
        return Finding("problem", str(error), advice)
    if health is not True:
        return Finding("problem", f"{address}/health answers {health!r}, not true", advice)
    return Finding("ok", f"{address} answers in {1000 * (time.monotonic() - start):.0f} ms")


def _needs_server(check: Callable[[CheckContext], Finding]) -> Callable[[CheckContext], Finding]:
    """Makes findings of a missing address, a failed request and an unknown answer."""

    @functools.wraps(check)
    def checked(context: CheckContext) -> Finding:
        if not context.environment.get("PREFECT_API_URL"):
            return Finding("ok", "no server is named")
        try:
            return check(context)
        except ConnectionError as error:
            return Finding("warning", f"unknown: {error}", "correct what is reported of the server first")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"the answer is none of Prefect 3.8's ({type(error).__name__} {error})"
            advice = "make sure that PREFECT_API_URL ends with /api and names a server of Prefect 3.8"
            return Finding("warning", message, advice)

    return checked


@_needs_server
def check_server_version(context: CheckContext) -> Finding:
    """Checks that the server and its clients are of one minor version."""
    theirs, ours = str(request(context, "/admin/version")[0]), installed_version("prefect")
    if ours is None:
        message = f"the server is {theirs}, no client is installed here"
        return Finding("warning", message, "pip install -e '.[flows]'")
    is_other_minor = theirs.split(".")[:2] != ours.split(".")[:2]
    advice = f"pip install prefect=={ours} where the server runs"
    message = f"the server is {theirs}, the client {ours}"
    return grade(message, advice, problem=is_other_minor, warning=theirs != ours)


@_needs_server
def check_gpu_limit(context: CheckContext) -> Finding:
    """Checks the slots that stages with `meta: {gpu: true}` hold; without the limit no such stage starts."""
    count, command = len(query_gpus().names), "prefect global-concurrency-limit"
    limits = {limit["name"]: limit for limit in request(context, "/v2/concurrency_limits/filter", {"limit": 200})[0]}
    if GPU_LIMIT not in limits:
        message = f"the server has no limit {GPU_LIMIT!r}" + ("" if count else "; this machine has no GPU to count")
        advice = f"{command} create {GPU_LIMIT} --limit {count} (the GPUs of all hosts)"
        return grade(message, advice, problem=count > 0)
    limit = limits[GPU_LIMIT]
    if not limit["active"]:
        return Finding("problem", "the limit is switched off: stages share GPUs", f"{command} enable {GPU_LIMIT}")
    is_low = limit["limit"] < count
    message = f"{limit['active_slots']} of {limit['limit']} slots are taken"
    message += f", this machine alone has {count} GPUs" if is_low else ""
    return grade(message, f"{command} update {GPU_LIMIT} --limit {count}", warning=is_low)


@_needs_server
def check_workers(context: CheckContext) -> Finding:
    """Checks the work pools, and that each has a worker online for what is scheduled."""
    pools = [pool for pool in request(context, "/work_pools/filter", {})[0] if pool["type"] != "prefect-agent"]
    if not pools:
        advice = "make serve, or prefect work-pool create NAME --type process"
        return Finding("warning", "the server has no work pool", advice)
    online: dict[str, int] = {}
    for name in (pool["name"] for pool in pools):
        workers = request(context, f"/work_pools/{urllib.parse.quote(name, safe='')}/workers/filter", {})[0]
        online[name] = sum(worker["status"] == "ONLINE" for worker in workers)
    message = ", ".join(f"{name}: {count} workers online" for name, count in online.items())
    if paused := [pool["name"] for pool in pools if pool.get("is_paused")]:
        return Finding("warning", f"{message}; {paused[0]} is paused", f"prefect work-pool resume {paused[0]}")
    if idle := [name for name, count in online.items() if not count]:
        advice = f"prefect worker start --pool {idle[0]}"
        message += "; what is scheduled there waits"
        return grade(message, advice, problem=not any(online.values()), warning=True)
    return Finding("ok", message)


@_needs_server
def check_server_clock(context: CheckContext) -> Finding:
    """Checks the server's clock, which counts leases and schedules, against this machine's."""
    date = request(context, "/health")[1]
    if not date:
        return Finding("warning", "the server puts no date on its answers", "check its proxy")
    skew = parsedate_to_datetime(date).timestamp() - time.time()
    is_off, advice = abs(skew) > MAX_SKEW_SECONDS, "synchronise both by NTP (timedatectl set-ntp true)"
    message = f"it is {abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return grade(message if is_off else "agrees with this machine's", advice, warning=is_off)
