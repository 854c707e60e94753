"""The shards of one stage and set: jobs in, those that are missing made, and an account of all of them out.

A shard that fails is set aside with its reason and the others are finished; only then is it judged whether so many
failures are allowed.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding import local
from fer_pipeline.sharding.jobs import Begin, Job, Outcome
from fer_pipeline.sharding.progress_file import Bulletin


@dataclass(frozen=True)
class Failure:
    """A job that could not be made, with the line that says why."""

    job: Job[Any]
    line: str


@dataclass(frozen=True)
class Made:
    """What became of all jobs, in their order and without their payloads."""

    jobs: tuple[Job[None], ...]
    reused: int
    failures: tuple[Failure, ...]
    damaged: int  # shards that were found damaged in the store and made again

    @property
    def finished(self) -> tuple[Job[None], ...]:
        """The jobs whose shard is in the store."""
        failed = {failure.job.key for failure in self.failures}
        return tuple(job for job in self.jobs if job.key not in failed)

    @property
    def counts(self) -> dict[str, int | float]:
        """Shards: all, and how many were made, reused and failed."""
        made = len(self.finished) - self.reused
        return {"shards": len(self.jobs), "made": made, "reused": self.reused, "failed": len(self.failures)}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of a run that went well enough."""
        damaged = f"{self.damaged} finished shards were damaged in the store; they were made again"
        return (*((damaged,) if self.damaged else ()), *(failure.line for failure in self.failures))


def make_shards(
    stage: str,
    name: str,
    jobs: Iterable[Job[Any]],
    begin: Begin,
    *,
    store: Path,
    resources: Resources,
    unit: str,
    total: int | None,
    allowed_failures: int,
    preload: str,
    verify: bool = False,
) -> Made:
    """Makes what is missing of `jobs`; more than `allowed_failures`, or none finished, is a DataError.

    `total` counts items (`unit`); `verify` hashes finished shards again before they are reused.
    """
    kept = Store(store, owner=f"{stage}@{name}", verify=verify)
    planned: list[Job[None]] = []
    failures: list[Failure] = []
    reused = 0

    def missing() -> Iterator[Job[Any]]:
        nonlocal reused
        for job in jobs:
            planned.append(replace(job, payload=None))
            if kept.has(job.key):
                reused += 1
                bulletin.shards["reused"] = reused
                advance.skip(job.items)
            else:
                yield job
        kept.used(job.key for job in planned)

    spread = backend(resources)
    bulletin = Bulletin(store, stage, name)
    with progress(f"{stage} {name}", total, unit) as advance, bulletin.watching(advance):
        outcomes = spread(
            missing(), begin, store=store, owner=kept.owner, resources=resources, preload=preload, advance=advance
        )
        with closing(outcomes):
            for outcome in outcomes:
                if outcome.full:
                    raise DataError(
                        f"{stage} {_line(outcome)}: the store has no room for the shard; finished shards are kept, "
                        f"make room and run again"
                    )
                if outcome.fault is not None:
                    failures.append(Failure(outcome.job, _line(outcome)))
                bulletin.shards["made" if outcome.fault is None else "failed"] += 1
    order = {job.key: place for place, job in enumerate(planned)}
    made = Made(tuple(planned), reused, tuple(sorted(failures, key=lambda f: order[f.job.key])), len(kept.damaged))
    if failures and (len(failures) > allowed_failures or not made.finished):
        more = f" (and {len(failures) - 1:,} more)" if len(failures) > 1 else ""
        raise DataError(
            f"{stage} {made.failures[0].line}{more}; {len(made.finished) - reused:,} shards made, {reused:,} reused, "
            f"{len(failures):,} failed; finished shards are kept, rerun {stage} after mending"
        )
    return made


def backend(resources: Resources) -> Any:
    """The `spread` of the backend that the settings name."""
    if resources.backend == "ray":
        from fer_pipeline.sharding import ray

        return ray.spread
    return local.spread


def _line(outcome: Outcome) -> str:
    fault = outcome.fault or ""
    return fault if outcome.job.name in fault else f"{outcome.job.name}: {fault}"
