"""Jobs in, their outcomes out as they end, made by the workers of a Ray cluster: one actor each, with its model loaded.

The bytes do not depend on where and by how many they are made. A worker has one job at a time, and as many again are
planned ahead. Ray starts a lost worker again and gives it the job that it was making, `retries` times; a job that kills
every worker is then given up and the others go on. Workers join as the cluster gets room for them.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import ConfigError, PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import THREADS, one_thread
from fer_pipeline.sharding.jobs import DIED, Advance, Begin, Job, Maker, Outcome, Result, attempt
from fer_pipeline.sharding.ray_cluster import answers, joined
from fer_pipeline.sharding.worker import Begun

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_CALLS = 10.0  # to the cluster's head
CALLS_MISSED = 3  # before the cluster is held for lost
SECONDS_TO_STOP = 5.0
ASIDE = "aside"  # the thread of a worker that answers while a shard is made
ASKED: dict[str, Any] = {"concurrency_group": ASIDE, "max_task_retries": 0}


def spread(
    jobs: Iterable[Job[Any]],
    begin: Begin,
    *,
    store: Path,
    owner: str,
    resources: Resources,
    preload: str,
    advance: Advance,
) -> Iterator[Outcome]:
    """Makes every job's shard in the store, which all hosts must see at the same path.

    `preload` is no matter here: a worker imports what `begin` needs. An impossible setting, a cluster that does not
    answer and a host that does not see the store are a ConfigError; a cluster that is lost is a PipelineError.
    """
    ahead = iter(jobs)
    first = list(itertools.islice(ahead, 1))
    if not first:
        return
    if resources.device.startswith("cuda:"):
        raise ConfigError(f"Ray chooses the GPU of a worker; say device cuda instead of {resources.device!r}")
    with joined(resources) as ray, _token(store) as token:
        gpus = _gpus_per_worker(ray, resources)
        actor = ray.remote(
            num_cpus=resources.ray.cpus_per_worker,
            num_gpus=gpus,
            max_restarts=-1,
            max_task_retries=resources.retries,
            concurrency_groups={ASIDE: 1},
            runtime_env={"env_vars": dict.fromkeys(THREADS, "1")},
        )(Actor)
        device = "cuda:0" if gpus else "cpu"  # Ray shows a worker its own GPUs alone
        actors = [actor.remote(begin, device, token.resolve(), owner, Path.cwd()) for _ in range(resources.workers)]
        crew = _Crew(ray, actors, resources, advance)
        try:
            yield from crew.make(itertools.chain(first, ahead))
        finally:
            crew.stop()


def _gpus_per_worker(ray: Any, resources: Resources) -> float:
    if resources.device == "cpu":
        return 0
    if resources.ray.gpus_per_worker is not None:
        return resources.ray.gpus_per_worker
    return 1 if resources.device == "cuda" or ray.cluster_resources().get("GPU", 0) >= 1 else 0


@contextmanager
def _token(store: Path) -> Iterator[Path]:
    """A file in the store by which workers elsewhere know it."""
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

    def __init__(self, begin: Begin, device: str, token: Path, owner: str, folder: Path) -> None:
        self._begin, self._device, self._token, self._folder = begin, device, token, folder
        self._store = Store(token.parent, owner=owner)
        self._maker: Maker | None = None
        self._making, self._told, self._stopping = "", 0, False

    def start(self) -> Begun:
        """Finds the store and loads the model, once."""
        if self._maker is not None:
            return Begun()
        if not self._token.exists() or not self._folder.is_dir():
            here, store = socket.gethostname(), self._token.parent
            line = f"{here} does not see the store {store} or the folder {self._folder} of this run"
            return Begun(ConfigError(f"{line}; all hosts of the cluster must share them at the same path"))
        os.chdir(self._folder)  # where the paths of the jobs begin
        try:
            with one_thread(self._device):
                self._maker = self._begin(self._device)
        except Exception as error:
            return Begun(error if isinstance(error, PipelineError) else RuntimeError(traceback.format_exc()))
        return Begun()

    def make(self, job: Job[Any]) -> Begun | Result:
        """One shard; in an actor that was started again, why the model cannot be loaded."""
        begun = self.start()
        if self._maker is None:
            return begun
        self._making, self._told = job.key, 0
        try:
            with one_thread(self._device):
                return attempt(job, self._maker, store=self._store, device=self._device, advance=self._advance)
        except _Stopped:
            return Result("stopped", 0.0)

    def told(self) -> tuple[str, int]:
        """The key of the job that is being made, and the items of it that are done."""
        return self._making, self._told

    def stop(self) -> None:
        """Lets the shard that is being made end at its next word of progress, without a trace of it."""
        self._stopping = True

    def _advance(self, items: int) -> None:
        self._told += items
        if self._stopping:
            raise _Stopped


@dataclass(eq=False)
class _Hand:
    """The driver's hold on a worker; `job` is what it is making, `told` how much of it has been counted."""

    actor: Any
    begun: bool = False
    job: Job[Any] | None = None
    told: int = 0
    asked: bool = False  # a question for progress is under way


class _Crew:
    """The workers of one run."""

    def __init__(self, ray: Any, actors: list[Any], resources: Resources, advance: Advance) -> None:
        self._ray, self._resources, self._advance = ray, resources, advance
        self._hands = [_Hand(actor) for actor in actors]
        self._calls: dict[Any, tuple[_Hand, Callable[[_Hand, Any], Outcome | None]]] = {}
        self._waiting: deque[Job[Any]] = deque()
        self._head = _Head(ray.get_runtime_context().gcs_address)

    def make(self, jobs: Iterator[Job[Any]]) -> Iterator[Outcome]:
        """All jobs; those that no worker survives end with the line that says so."""
        started = looked = time.monotonic()
        for hand in self._hands:
            self._start(hand)
        more = True
        while True:
            self._give()
            while more and len(self._waiting) < len(self._hands):
                job = next(jobs, None)
                more = job is not None
                if job is not None:
                    self._waiting.append(job)
                    self._give()  # at once: to plan the next one may take a while
            if not self._waiting and all(hand.job is None for hand in self._hands):
                return
            ready, _ = self._ray.wait(list(self._calls), timeout=SECONDS_BETWEEN_LOOKS)
            for call in ready:
                hand, hear = self._calls.pop(call)
                outcome = hear(hand, call)
                if outcome is not None:
                    yield outcome
            if time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS:
                looked = time.monotonic()
                self._look(looked - started)

    def stop(self) -> None:
        """Ends all workers, those that make a shard gently first."""
        if self._head.lost or not self._ray.is_initialized():  # Ray would start another for the asking
            return
        busy = [call for call, (hand, hear) in self._calls.items() if hand.job is not None and hear == self._made]
        if busy:
            for hand in self._hands:
                if hand.job is not None:
                    hand.actor.stop.options(**ASKED).remote()
            self._ray.wait(busy, num_returns=len(busy), timeout=SECONDS_TO_STOP)
        for hand in self._hands:
            self._ray.kill(hand.actor)

    def _start(self, hand: _Hand) -> None:
        hand.begun = False
        self._calls[hand.actor.start.remote()] = hand, self._started

    def _give(self) -> None:
        """A job to each worker that is ready for one."""
        for hand in self._hands:
            if hand.begun and hand.job is None and self._waiting:
                hand.job, hand.told = self._waiting.popleft(), 0
                self._calls[hand.actor.make.remote(hand.job)] = hand, self._made

    def _started(self, hand: _Hand, call: Any) -> None:
        errors = self._ray.exceptions
        try:
            begun = self._ray.get(call)
        except errors.RayError as error:
            self._hands.remove(hand)
            self._ray.kill(hand.actor)
            if not self._hands:
                raise PipelineError(
                    f"no worker can load what it needs (out of memory, or not installed on the cluster's hosts?): "
                    f"{str(error).strip().splitlines()[-1]}; finished shards are kept"
                ) from None
            return
        if begun.fault is not None:
            raise begun.fault
        hand.begun = True

    def _made(self, hand: _Hand, call: Any) -> Outcome:
        errors = self._ray.exceptions
        assert hand.job is not None
        try:
            result = self._ray.get(call)
        except errors.RayTaskError:  # our own mistake
            raise
        except errors.RayError:
            result = Result(DIED, 0.0)
            self._start(hand)  # gets no other job before it is seen to live
        if isinstance(result, Begun):
            assert result.fault is not None
            raise result.fault
        job, hand.job = hand.job, None
        self._advance(job.items - hand.told)
        return Outcome(job, result.fault, result.seconds, result.full)

    def _told(self, hand: _Hand, call: Any) -> None:
        hand.asked = False
        try:
            key, items = self._ray.get(call)
        except self._ray.exceptions.RayError:  # lost, which its job will tell
            return
        if hand.job is not None and hand.job.key == key:
            self._advance(items - hand.told)
            hand.told = items

    def _look(self, seconds: float) -> None:
        """Asks busy workers how far they are, and sees to it that a silent cluster is not waited for."""
        for hand in self._hands:
            if hand.job is not None and not hand.asked:
                hand.asked = True
                self._calls[hand.actor.told.options(**ASKED).remote()] = hand, self._told
        self._head.look()
        asked = self._resources.ray
        if seconds > asked.wait_seconds and not any(hand.begun or hand.job for hand in self._hands):
            has = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            raise ConfigError(
                f"no Ray worker came within {asked.wait_seconds:g} s: one asks for {asked.cpus_per_worker:g} CPUs and "
                f"{_gpus_per_worker(self._ray, self._resources):g} GPUs, the cluster has {has['CPU']:g} and "
                f"{has['GPU']:g} in all; mend resources.ray or wait for its other work"
            )


class _Head:
    """Whether the cluster's head still answers; Ray itself would wait for a minute and then end this process."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._last = time.monotonic()
        self._missed = 0

    @property
    def lost(self) -> bool:
        return self._missed >= CALLS_MISSED

    def look(self) -> None:
        """Calls it now and then; PipelineError where it is gone."""
        if time.monotonic() - self._last < SECONDS_BETWEEN_CALLS:
            return
        self._last = time.monotonic()
        self._missed = 0 if answers(self._address) else self._missed + 1
        if self.lost:
            raise PipelineError(
                f"the Ray cluster at {self._address} no longer answers; finished shards are kept, run again"
            )
