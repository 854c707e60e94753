"""Make shards with the workers of a Ray cluster: one actor each, with its model loaded.

Another actor takes the place of a lost one, whose job goes to the next that is ready; a job that kills every worker is
then given up and the others go on. Workers join as the cluster gets space for them. The cluster is a running one,
joined by its address, or a local one of our own, which listens on the loopback alone, asks for a token, sends no usage
statistics, keeps its files in a short-lived folder, and is gone when this process is, however that ends.
"""

import itertools
import logging
import math
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import ConfigError, PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding import ray_cleanup
from fer_pipeline.sharding.devices import ONE_THREAD, environment
from fer_pipeline.sharding.jobs import Advance, Job, Outcome, Setup
from fer_pipeline.sharding.local import SECONDS_TO_STOP, Message, Worker, WorkerPool, WorkerTask

SECONDS_BETWEEN_CHECKS = 1.0
CONTROL_THREADS = "control"  # of a worker, which answer while a shard is made
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
TOKEN = secrets.token_hex(32)  # one for the life of this process, since Ray reads it once


def run_jobs(
    jobs: Iterable[Job[Any]], setup: Setup, *, store: Store, resources: Resources, preload: str, advance: Advance
) -> Iterator[Outcome]:
    """Makes every job's shard in the store, which all hosts must see at the same path; yields outcomes as they come.

    `preload` is not used: a worker imports what `setup` needs. An impossible setting, a cluster that does not answer
    and a host that does not see the store are a ConfigError; a cluster that is lost is a PipelineError.
    """
    coming = iter(jobs)
    first = list(itertools.islice(coming, 1))
    if not first:
        return
    if resources.device.startswith("cuda:"):
        raise ConfigError(f"Ray chooses the GPU of a worker; say device cuda instead of {resources.device!r}")
    store.root.mkdir(parents=True, exist_ok=True)
    # By the token workers on other hosts recognise the store.
    with (
        join_cluster(resources) as ray,
        tempfile.NamedTemporaryFile(dir=store.root, suffix=".tmp", prefix=".") as token,
    ):
        place = Path(token.name).resolve(), store.owner, Path.cwd()
        yield from _ActorPool(ray, setup, place, resources, advance).run(itertools.chain(first, coming))


class _Stopped(BaseException):
    """The driver wants no more of the shard that is being made."""


class Actor(WorkerTask):
    """A worker, wherever Ray puts it."""

    def __init__(self, setup: Setup, device: str, token: Path, owner: str, folder: Path) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        super().__init__(setup, device, Store(token.parent, owner=owner), self._messages.put)
        self._token, self._folder, self._stopping = token, folder, False

    def _load(self) -> None:
        if not self._token.exists() or not self._folder.is_dir():
            raise ConfigError(
                f"{socket.gethostname()} does not see the store {self._token.parent} or the folder {self._folder} of "
                f"this run; all hosts of the cluster must share them at the same path"
            )
        os.chdir(self._folder)  # where the paths of the jobs begin
        super()._load()

    def make_pickled(self, job: bytes) -> None:
        """Makes one shard; a job that cannot be read on this host is an error that is sent, not waited for."""
        from ray import cloudpickle

        try:
            self.make(cloudpickle.loads(job))
        except _Stopped:
            pass
        except Exception as error:
            self._messages.put(error)

    def receive(self) -> Message:
        return self._messages.get()

    def stop(self) -> None:
        """Lets the shard that is being made end at its next report of progress, without a trace of it."""
        self._stopping = True

    def _advance(self, items: int) -> None:
        super()._advance(items)
        if self._stopping:
            raise _Stopped


class _ActorPool(WorkerPool):
    """The actors of one run, and the cluster as their driver sees it."""

    retry_alone = False
    fault = (
        "no worker can load what it needs (out of memory, or not installed on the cluster's hosts?): {reason}; "
        "finished shards are kept"
    )

    def __init__(
        self, ray: Any, setup: Setup, place: tuple[Path, str, Path], resources: Resources, advance: Advance
    ) -> None:
        self.ray, self._limits = ray, resources.ray
        gpus = resources.ray.gpus_per_worker
        if gpus is None:
            gpus = 1 if resources.device == "cuda" or ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self._gpus = 0 if resources.device == "cpu" else gpus
        self._head = HeadMonitor(ray.get_runtime_context().gcs_address)
        self._seen = time.monotonic()  # when a worker was last ready
        actor = ray.remote(
            num_cpus=resources.ray.cpus_per_worker,
            num_gpus=self._gpus,
            concurrency_groups={CONTROL_THREADS: 2},  # one of them waits in `receive`
            runtime_env={"env_vars": ONE_THREAD},
        )(Actor)
        super().__init__(
            lambda device: _ActorWorker(device, self, actor.remote(setup, device, *place)),
            ["cuda:0" if self._gpus else "cpu"] * resources.workers,  # Ray shows a worker its own GPUs alone
            resources.retries,
            advance,
        )

    @property
    def answers(self) -> bool:
        """Tells whether the cluster may be called; Ray would start another for the asking."""
        return not self._head.lost and self.ray.is_initialized()

    def wait(self) -> list[Any]:
        """Waits for a message; a lost cluster, and no worker for too long, are errors."""
        ready, _ = self.ray.wait([worker.channel for worker in self._workers], timeout=SECONDS_BETWEEN_CHECKS)
        self._head.check()
        if any(worker.ready for worker in self._workers):
            self._seen = time.monotonic()
        elif not ready and time.monotonic() - self._seen > self._limits.wait_seconds:
            available = {name: self.ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(
                f"no Ray worker came within {self._limits.wait_seconds:g} s: one asks for "
                f"{self._limits.cpus_per_worker:g} CPUs and {self._gpus:g} GPUs, the cluster "
                f"has {available['CPU']:g} and {available['GPU']:g} in all; change resources.ray or wait for its other "
                "work; finished shards are kept"
            )
        return ready


class _ActorWorker(Worker):
    """An actor as its driver sees it; its channel is the call of `receive` that is under way."""

    # It may wait for space for ever, and a job that kills it at once takes the message that it is ready with it.
    takes_job_early = False

    def __init__(self, device: str, pool: _ActorPool, actor: Any) -> None:
        self.device, self._pool, self._actor, self._call = device, pool, actor, actor.start.remote()
        self._ask = actor.receive.options(concurrency_group=CONTROL_THREADS).remote
        self.channel = self._ask()

    def send(self, job: Job[Any]) -> None:
        self.job, self.reported = job, 0
        self._call = self._actor.make_pickled.remote(self._pool.ray.cloudpickle.dumps(job))

    def receive(self) -> Message:
        try:
            message = self._pool.ray.get(self.channel)
        except self._pool.ray.exceptions.RayTaskError:  # our own mistake
            raise
        except self._pool.ray.exceptions.RayError as lost:
            raise EOFError(str(lost).strip().splitlines()[-1]) from None
        self.channel = self._ask()
        return message

    def ask_to_stop(self) -> None:
        if self.job is not None and self._pool.answers:
            self._actor.stop.options(concurrency_group=CONTROL_THREADS).remote()

    def stop(self) -> None:
        if self._pool.answers:
            if self.job is not None:
                self._pool.ray.wait([self._call], timeout=SECONDS_TO_STOP)
            self._pool.ray.kill(self._actor)


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
        raise ConfigError("the backend 'ray' needs Ray: pip install -e '.[ray]', or say backend local") from None
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
        self._address, self._called, self._missed = address, time.monotonic(), 0
        self.lost = False  # it has not answered several times in a row

    def check(self) -> None:
        """Calls the head every few seconds; PipelineError where it is lost."""
        if time.monotonic() - self._called < SECONDS_BETWEEN_CALLS:
            return
        self._called = time.monotonic()
        self._missed = 0 if answers(self._address) else self._missed + 1
        self.lost = self._missed >= MISSED_CALLS
        if self.lost:
            raise PipelineError(
                f"the Ray cluster at {self._address} no longer answers; finished shards are kept, run again"
            )


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(
            f"the Ray address {address!r} is none; give host:port of the cluster's head (6379 as a rule) or auto"
        )
    if not answers(address):
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
        environment(LOOPBACK | {"RAY_AUTH_TOKEN": TOKEN}),
    ):
        yield {
            "address": "local",
            "num_cpus": math.ceil(resources.workers * resources.ray.cpus_per_worker),
            "num_gpus": 0 if resources.device == "cpu" else None,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }


def _set_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _exit(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)  # workers and files are cleaned up on the way
