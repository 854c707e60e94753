"""Make shards with the workers of a Ray cluster: one actor each, with its model loaded.

Another actor takes the place of a lost one and gets the job that it was making; a job that kills every worker is then
given up and the others go on. Workers join as the cluster gets space for them.
"""

import itertools
import os
import queue
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import ONE_THREAD
from fer_pipeline.sharding.jobs import Advance, Job, Outcome, Setup
from fer_pipeline.sharding.local import SECONDS_TO_STOP, Message, Worker, WorkerPool, WorkerTask
from fer_pipeline.sharding.ray_cluster import HeadMonitor, join_cluster

SECONDS_BETWEEN_CHECKS = 1.0
CONTROL_THREADS = "control"  # of a worker, which answer while a shard is made


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
    with join_cluster(resources) as ray, NamedTemporaryFile(dir=store.root, prefix=".", suffix=".tmp") as token:
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
        """Waits for the next message."""
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
        self._begun = time.monotonic()
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
        late = time.monotonic() - self._begun > self._limits.wait_seconds
        if late and not any(worker.ready or worker.job for worker in self._workers):
            available = {name: self.ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(
                f"no Ray worker came within {self._limits.wait_seconds:g} s: one asks for "
                f"{self._limits.cpus_per_worker:g} CPUs and {self._gpus:g} GPUs, the cluster has "
                f"{available['CPU']:g} and {available['GPU']:g} in all; change resources.ray or wait for its other work"
            )
        return ready


class _ActorWorker(Worker):
    """An actor as its driver sees it; its channel is the call of `receive` that is under way."""

    takes_job_early = False  # it may wait for space for ever

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
