"""Make shards with the workers of a Ray cluster: one actor each, with its model loaded.

The bytes do not depend on where and by how many workers they are made. A worker has one job at a time, and as many
again are planned ahead. Ray restarts a lost worker and gives it the job that it was making, `retries` times; a job that
kills every worker is then given up and the others go on. Workers join as the cluster gets space for them.
"""

import itertools
import os
import socket
import time
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import ConfigError, PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import ONE_THREAD, one_thread
from fer_pipeline.sharding.jobs import WORKER_DIED, Advance, Job, Maker, Outcome, Setup, attempt
from fer_pipeline.sharding.ray_cluster import HeadMonitor, join_cluster

SECONDS_BETWEEN_CHECKS = 1.0
SECONDS_TO_STOP = 5.0
# The thread of a worker that answers while a shard is made.
CONTROL_THREAD = "control"
CONTROL_CALL: dict[str, Any] = {"concurrency_group": CONTROL_THREAD, "max_task_retries": 0}


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
    with join_cluster(resources) as ray, _token_file(store.root) as token:
        gpus = _gpus_per_worker(ray, resources)
        remote_actor = ray.remote(
            num_cpus=resources.ray.cpus_per_worker,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=resources.retries,
            concurrency_groups={CONTROL_THREAD: 1},
            runtime_env={"env_vars": ONE_THREAD},
        )(Actor)
        device = "cuda:0" if gpus else "cpu"  # Ray shows a worker its own GPUs alone
        actors = [
            remote_actor.remote(setup, device, token.resolve(), store.owner, Path.cwd())
            for _ in range(resources.workers)
        ]
        pool = _ActorPool(ray, actors, resources, advance)
        try:
            yield from pool.run(itertools.chain(first, coming))
        finally:
            pool.stop()


def _gpus_per_worker(ray: Any, resources: Resources) -> float:
    if resources.device == "cpu":
        return 0
    if resources.ray.gpus_per_worker is not None:
        return resources.ray.gpus_per_worker
    return 1 if resources.device == "cuda" or ray.cluster_resources().get("GPU", 0) >= 1 else 0


@contextmanager
def _token_file(store: Path) -> Iterator[Path]:
    """Yields a file in the store by which workers on other hosts recognise it."""
    store.mkdir(parents=True, exist_ok=True)
    token = store / f".{uuid.uuid4().hex}.tmp"
    token.touch()
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


class _Stopped(BaseException):
    """The driver wants no more of the shard that is being made."""


class Actor:
    """A worker, wherever Ray puts it."""

    def __init__(self, setup: Setup, device: str, token: Path, owner: str, folder: Path) -> None:
        self._setup, self._device, self._token, self._folder = setup, device, token, folder
        self._store = Store(token.parent, owner=owner)
        self._maker: Maker | None = None
        self._key, self._done, self._stopping = "", 0, False

    def start(self) -> Exception | None:
        """Finds the store and loads the model, once; returns why that is impossible."""
        if self._maker is not None:
            return None
        if not self._token.exists() or not self._folder.is_dir():
            return ConfigError(
                f"{socket.gethostname()} does not see the store {self._token.parent} or the folder {self._folder} of "
                f"this run; all hosts of the cluster must share them at the same path"
            )
        os.chdir(self._folder)  # where the paths of the jobs begin
        try:
            with one_thread(self._device):
                self._maker = self._setup(self._device)
        except Exception as error:
            return error if isinstance(error, PipelineError) else RuntimeError(traceback.format_exc())
        return None

    def make(self, job: Job[Any]) -> Outcome | Exception:
        """Makes one shard; in an actor that was restarted, it may return why the model cannot be loaded."""
        error = self.start()
        if self._maker is None:
            assert error is not None
            return error
        self._key, self._done = job.key, 0
        try:
            with one_thread(self._device):
                return attempt(job, self._maker, store=self._store, device=self._device, advance=self._advance)
        except _Stopped:
            return Outcome(replace(job, payload=None), "stopped", 0.0)

    def progress(self) -> tuple[str, int]:
        """Returns the key of the job that is being made, and the items of it that are done."""
        return self._key, self._done

    def stop(self) -> None:
        """Lets the shard that is being made end at its next report of progress, without a trace of it."""
        self._stopping = True

    def _advance(self, items: int) -> None:
        self._done += items
        if self._stopping:
            raise _Stopped


@dataclass(eq=False)
class _Worker:
    """An actor as the driver sees it: the job that it is making and the items of it that it has reported."""

    actor: Any
    ready: bool = False  # the model is loaded
    job: Job[Any] | None = None
    reported: int = 0
    progress_asked: bool = False  # a call of `progress` is under way


class _ActorPool:
    """The workers of one run, and the calls to them that are under way, each with what handles its answer."""

    def __init__(self, ray: Any, actors: list[Any], resources: Resources, advance: Advance) -> None:
        self._ray, self._resources, self._advance = ray, resources, advance
        self._workers = [_Worker(actor) for actor in actors]
        self._calls: dict[Any, tuple[_Worker, Callable[[_Worker, Any], Outcome | None]]] = {}
        self._queue: deque[Job[Any]] = deque()
        self._head = HeadMonitor(ray.get_runtime_context().gcs_address)

    def run(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        """Makes all jobs; those that no worker survives end with the line that says so."""
        started = checked = time.monotonic()
        for worker in self._workers:
            self._start(worker)
        while True:
            self._assign()
            while len(self._queue) < len(self._workers) and (job := next(jobs, None)) is not None:
                self._queue.append(job)
                self._assign()  # at once: to plan the next one may take a while
            if not self._queue and all(worker.job is None for worker in self._workers):
                return
            ready, _ = self._ray.wait(list(self._calls), timeout=SECONDS_BETWEEN_CHECKS)
            for call in ready:
                worker, handle = self._calls.pop(call)
                if (outcome := handle(worker, call)) is not None:
                    yield outcome
            if time.monotonic() - checked >= SECONDS_BETWEEN_CHECKS:
                checked = time.monotonic()
                self._ask_for_progress()
                self._head.check()
                self._check_arrival(checked - started)

    def stop(self) -> None:
        """Ends all workers, those that make a shard gently first."""
        if self._head.lost or not self._ray.is_initialized():  # Ray would start another for the asking
            return
        busy = [call for call, (worker, handle) in self._calls.items() if worker.job and handle == self._handle_outcome]
        if busy:
            for worker in self._workers:
                if worker.job is not None:
                    worker.actor.stop.options(**CONTROL_CALL).remote()
            self._ray.wait(busy, num_returns=len(busy), timeout=SECONDS_TO_STOP)
        for worker in self._workers:
            self._ray.kill(worker.actor)

    def _start(self, worker: _Worker) -> None:
        worker.ready = False
        self._calls[worker.actor.start.remote()] = worker, self._handle_start

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.job is None and self._queue:
                worker.job, worker.reported = self._queue.popleft(), 0
                self._calls[worker.actor.make.remote(worker.job)] = worker, self._handle_outcome

    def _handle_start(self, worker: _Worker, call: Any) -> None:
        try:
            error = self._ray.get(call)
        except self._ray.exceptions.RayError as lost:
            self._workers.remove(worker)
            self._ray.kill(worker.actor)
            if not self._workers:
                raise PipelineError(
                    f"no worker can load what it needs (out of memory, or not installed on the cluster's hosts?): "
                    f"{str(lost).strip().splitlines()[-1]}; finished shards are kept"
                ) from None
            return
        if error is not None:
            raise error
        worker.ready = True

    def _handle_outcome(self, worker: _Worker, call: Any) -> Outcome:
        job, worker.job = worker.job, None
        assert job is not None
        try:
            outcome = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:  # our own mistake
            raise
        except self._ray.exceptions.RayError:
            outcome = Outcome(job, WORKER_DIED, 0.0)
            self._start(worker)  # gets no other job before it is seen to live
        if isinstance(outcome, Exception):
            raise outcome
        self._advance(job.items - worker.reported)
        return replace(outcome, job=job)

    def _ask_for_progress(self) -> None:
        for worker in self._workers:
            if worker.job is not None and not worker.progress_asked:
                worker.progress_asked = True
                call = worker.actor.progress.options(**CONTROL_CALL).remote()
                self._calls[call] = worker, self._handle_progress

    def _handle_progress(self, worker: _Worker, call: Any) -> None:
        worker.progress_asked = False
        try:
            key, items = self._ray.get(call)
        except self._ray.exceptions.RayError:  # lost, which its job will tell
            return
        if worker.job is not None and worker.job.key == key:
            self._advance(items - worker.reported)
            worker.reported = items

    def _check_arrival(self, seconds: float) -> None:
        """Refuses to wait any longer for a first worker."""
        limits = self._resources.ray
        if seconds > limits.wait_seconds and not any(worker.ready or worker.job for worker in self._workers):
            available = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(
                f"no Ray worker came within {limits.wait_seconds:g} s: one asks for {limits.cpus_per_worker:g} CPUs "
                f"and {_gpus_per_worker(self._ray, self._resources):g} GPUs, the cluster has {available['CPU']:g} and "
                f"{available['GPU']:g} in all; change resources.ray or wait for its other work"
            )
