"""Make the shards of one stage and set that the store lacks, and account for all of them.

A shard that fails is set aside with its reason and the others are finished; only then are the failures counted against
what is allowed.
"""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import Progress, progress, with_listener
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding import local, ray
from fer_pipeline.sharding.jobs import Job, Outcome, Work

SECONDS_BETWEEN_WRITES = 2.0


class ProgressFile:
    """The state of a running stage in `<store>/progress/<stage>@<set>.json`, for whoever watches from outside.

    It is written at most every two seconds and at the end. Fields: `done`, `earlier` (of these, by an earlier run),
    `total`, `unit`, `rate` (units a second),
    `seconds_left`, `shards` (made, reused, failed), `state` (running, finished or failed), `pid`, `host`, `updated`.
    Unknown numbers are null. Where the state is `running` and the process is gone, the run was killed.
    """

    def __init__(self, store: Path, stage: str, name: str) -> None:
        self.shards = {"made": 0, "reused": 0, "failed": 0}
        self._path = store / "progress" / f"{stage}@{name}.json"
        self._about = {"stage": stage, "name": name, "pid": os.getpid(), "host": platform.node()}
        self._written = -SECONDS_BETWEEN_WRITES
        self._progress: Progress | None = None

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Writes whatever progress begins in the block, until its end, and how that ended."""
        with with_listener(self._update):
            try:
                yield
            except BaseException:
                self._write("failed")
                raise
            self._write("finished")

    def _update(self, progress: Progress, items: int) -> None:
        self._progress = progress
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write("running")

    def _write(self, state: str) -> None:
        progress = self._progress
        if progress is None:
            return
        self._written = time.monotonic()
        left = progress.seconds_left
        numbers = {"done": progress.done, "earlier": progress.earlier, "total": progress.total, "unit": progress.unit}
        numbers |= {"rate": round(progress.rate, 3), "seconds_left": None if left is None else round(left, 1)}
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        content = {**self._about, "state": state, **numbers, "shards": self.shards, "updated": updated}
        # Not synced to the disk: it is of no use after a crash of the machine, and would wait for the shards' bytes.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:  # a full disk does not end the run here
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardResults:
    """The jobs of a run in their order and without their payloads, and how they ended."""

    jobs: tuple[Job[None], ...]
    counts: dict[str, int | float]  # of shards: all, and how many were made, reused and failed
    failures: tuple[Outcome, ...]  # in the order of the jobs, with their payloads
    damaged: int  # shards that were found damaged in the store and made again

    @property
    def finished(self) -> tuple[Job[None], ...]:
        failed = {failure.job.key for failure in self.failures}
        return tuple(job for job in self.jobs if job.key not in failed)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Returns what a person should know of a run that went well enough."""
        damaged = f"{self.damaged} finished shards were damaged in the store; they were made again"
        return (*((damaged,) if self.damaged else ()), *(failure.line for failure in self.failures))


def make_shards(
    stage: str, name: str, work: Work, store: Path, resources: Resources, allowed_failures: int, *, verify: bool = False
) -> ShardResults:
    """Makes the missing shards; more failures than allowed, or none finished, is a DataError.

    `verify` hashes finished shards again before they are reused.
    """
    shards = Store(store, owner=f"{stage}@{name}", verify=verify)
    planned: list[Job[None]] = []
    asked: set[str] = set()  # equal inputs of equal models, of several seeds for example, are one shard
    failures: list[Outcome] = []
    file = ProgressFile(store, stage, name)

    def missing() -> Iterator[Job[Any]]:
        for job in work.jobs:
            planned.append(replace(job, payload=None))
            if job.key in asked or shards.has(job.key):
                file.shards["reused"] += 1
                advance(job.items, earlier=True)
            else:
                asked.add(job.key)
                yield job
        shards.record_run(job.key for job in planned)

    with file.follow(), progress(f"{stage} {name}", work.total, work.unit) as advance:
        advance(0)  # from now on the file says that this runs
        outcomes = backend(resources).run_jobs(
            missing(),
            work.setup,
            store=Store(store, owner=shards.owner),
            resources=resources,
            preload=f"fer_pipeline.stages.{stage}",
            advance=advance,
        )
        with closing(outcomes):
            for outcome in outcomes:
                if outcome.full:
                    raise DataError(
                        f"{stage} {outcome.line}: the disk of the store is full; finished shards are kept, free some "
                        f"space and run again"
                    )
                if outcome.fault is not None:
                    failures.append(outcome)
                file.shards["made" if outcome.fault is None else "failed"] += 1
    order = {job.key: position for position, job in enumerate(planned)}
    failures.sort(key=lambda failure: order[failure.job.key])
    results = ShardResults(
        tuple(planned), {"shards": len(planned), **file.shards}, tuple(failures), len(shards.damaged)
    )
    if failures and (len(failures) > allowed_failures or not results.finished):
        more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
        raise DataError(
            f"{stage} {failures[0].line}{more}; {file.shards['made']:,} shards made, {file.shards['reused']:,} reused, "
            f"{len(failures):,} failed; finished shards are kept, rerun {stage} after correcting this"
        )
    return results


def backend(resources: Resources) -> Any:
    """Returns the module whose `run_jobs` the settings name."""
    return ray if resources.backend == "ray" else local
