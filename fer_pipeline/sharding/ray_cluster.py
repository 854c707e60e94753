"""Join a running Ray cluster by its address, or start a local one of our own.

A local Ray listens on the loopback alone, asks for a token, sends no usage statistics, keeps its files in a short-lived
folder, and is gone when this process is, however that ends.
"""

import functools
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fer_pipeline.core.errors import ConfigError, PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding import ray_cleanup
from fer_pipeline.sharding.devices import environment

ADDRESS = "RAY_ADDRESS"
SECONDS_TO_ANSWER = 10.0
SECONDS_BETWEEN_CALLS = 10.0  # to the cluster's head
MISSED_CALLS = 3  # before the cluster counts as lost
OBJECT_STORE_BYTES = 100 * 2**20  # jobs and outcomes are small; Ray would take a third of the memory
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's own way to have no node but this one; read when imported
SETTINGS = b"\x04"  # the frame that opens an HTTP/2 connection on either side (RFC 9113, 3.4 and 6.5)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
LOGS: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


@contextmanager
def join_cluster(resources: Resources) -> Iterator[Any]:
    """Yields the module `ray`, joined; a Ray that this process has joined before is used and left as it is."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = resources.ray.address or os.environ.get(ADDRESS)
    try:
        with environment({} if address else LOOPBACK):
            import ray
    except ImportError:
        raise ConfigError(
            "the backend 'ray' needs Ray: pip install 'fer_pipeline[ray]', or say backend local"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)  # it logs before it reads the settings below
    with ExitStack() as stack:
        before = signal.getsignal(signal.SIGTERM)
        stack.callback(_set_sigterm, before)
        # It prints pages on standard output for every worker that is lost; our outcome has a line.
        inner: Any = sys.modules["ray._private.worker"]
        if (printer := getattr(inner, "print_to_stdstream", None)) is not None:
            stack.callback(setattr, inner, "print_to_stdstream", printer)
            inner.print_to_stdstream = lambda *_, **__: None
        if address:
            _check_address(address)
            options, fault, advice = {"address": address}, f"the Ray cluster at {address} cannot be joined", ""
        else:
            options = stack.enter_context(_own_cluster(resources))
            fault, advice = "a local Ray cannot be started", "; say backend local"
        stack.callback(ray.shutdown)
        try:
            ray.init(**options, **LOGS)
        except Exception as error:  # whatever Ray raises: versions that differ, a missing token, no node here
            raise ConfigError(f"{fault}: {' '.join(str(error).split())}{advice}") from None
        # Ray has taken SIGTERM for itself, to end this process by a crash.
        _set_sigterm(_exit if before == signal.SIG_DFL else before)
        yield ray


def answers(address: str) -> bool:
    """Tells whether a server of the protocol that Ray speaks (gRPC, over HTTP/2) answers at "host:port".

    Ray itself waits for minutes for one that does not. Where Ray speaks TLS, only whether something listens.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return True
            connection.sendall(HELLO)
            return connection.recv(9)[3:4] == SETTINGS  # 3 bytes of length, then the kind of the frame
    except OSError:
        return False


class HeadMonitor:
    """Checks that the cluster's head still answers; Ray itself would wait for a minute and then end this process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._called = time.monotonic()
        self._missed = 0

    @property
    def lost(self) -> bool:
        """Tells whether the head has not answered several times in a row."""
        return self._missed >= MISSED_CALLS

    def check(self) -> None:
        """Calls the head every few seconds; PipelineError where it is lost."""
        if time.monotonic() - self._called < SECONDS_BETWEEN_CALLS:
            return
        self._called = time.monotonic()
        self._missed = 0 if answers(self._address) else self._missed + 1
        if self.lost:
            raise PipelineError(
                f"the Ray cluster at {self._address} no longer answers; finished shards are kept, run again"
            )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or not port.isdigit() or "/" in address):
        raise ConfigError(
            f"the Ray address {address!r} is none; give host:port of the cluster's head (6379 as a rule) or auto"
        )
    if address != "auto" and not answers(address):
        raise ConfigError(
            f"no Ray cluster answers at {address}; start it, correct resources.ray.address or {ADDRESS}, or say "
            f"backend local"
        )


@contextmanager
def _own_cluster(resources: Resources) -> Iterator[dict[str, Any]]:
    """Yields how to start a local Ray, of which nothing is left after the block or the death of this process."""
    folder = Path(tempfile.mkdtemp(prefix="ray-")).resolve()
    script = [sys.executable, "-I", "-S", str(Path(ray_cleanup.__file__).resolve()), str(folder), str(os.getpid())]
    null = subprocess.DEVNULL
    with (
        subprocess.Popen(script, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True, cwd="/"),
        environment(LOOPBACK | {"RAY_AUTH_TOKEN": _token()}),
    ):
        yield {
            "address": "local",
            "num_cpus": math.ceil(resources.workers * resources.ray.cpus_per_worker),
            "num_gpus": 0 if resources.device == "cpu" else None,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }


@functools.cache
def _token() -> str:
    return secrets.token_hex(32)  # one for the life of this process, since Ray reads it once


def _set_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _exit(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)  # workers and files are cleaned up on the way
