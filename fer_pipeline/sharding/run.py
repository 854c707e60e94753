"""Make the shards of one stage and set that the store lacks, and account for all of them.

A shard that fails is set aside with its reason and the others are finished; only then are the failures counted against
what is allowed.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding import local, ray
from fer_pipeline.sharding.jobs import Job, Outcome, Work
from fer_pipeline.sharding.progress_file import ProgressFile


@dataclass(frozen=True)
class ShardResults:
    """The jobs of a run in their order and without their payloads, and how they ended."""

    jobs: tuple[Job[None], ...]
    reused: int
    failures: tuple[Outcome, ...]  # in the order of the jobs, with their payloads
    damaged: int  # shards that were found damaged in the store and made again

    @property
    def finished(self) -> tuple[Job[None], ...]:
        """Returns the jobs whose shard is in the store."""
        failed = {failure.job.key for failure in self.failures}
        return tuple(job for job in self.jobs if job.key not in failed)

    @property
    def counts(self) -> dict[str, int | float]:
        """Counts the shards: all, and how many were made, reused and failed."""
        failed = len(self.failures)
        made = len(self.jobs) - failed - self.reused
        return {"shards": len(self.jobs), "made": made, "reused": self.reused, "failed": failed}

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
    failures: list[Outcome] = []
    file = ProgressFile(store, stage, name)

    def missing() -> Iterator[Job[Any]]:
        for job in work.jobs:
            planned.append(replace(job, payload=None))
            if shards.has(job.key):
                file.shards["reused"] += 1
                advance.skip(job.items)
            else:
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
                failures += [outcome] if outcome.fault is not None else []
                file.shards["made" if outcome.fault is None else "failed"] += 1
    order = {job.key: position for position, job in enumerate(planned)}
    failures.sort(key=lambda failure: order[failure.job.key])
    results = ShardResults(tuple(planned), file.shards["reused"], tuple(failures), len(shards.damaged))
    if failures and (len(failures) > allowed_failures or not results.finished):
        more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
        raise DataError(
            f"{stage} {failures[0].line}{more}; {results.counts['made']:,} shards made, {results.reused:,} reused, "
            f"{len(failures):,} failed; finished shards are kept, rerun {stage} after correcting this"
        )
    return results


def backend(resources: Resources) -> Any:
    """Returns the module whose `run_jobs` the settings name."""
    return ray if resources.backend == "ray" else local
