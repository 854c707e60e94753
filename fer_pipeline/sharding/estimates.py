"""Estimate the time and the disk that the missing shards of one stage and set will take.

The rate is that of finished shards of the same set where there are enough of them; else parts of missing shards are
made and timed, by as many workers as the settings name and on their devices, and thrown away.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.sharding.jobs import Job, Outcome, Work
from fer_pipeline.sharding.run import backend

ENOUGH_RECORDED = 3  # finished shards whose rate is worth more than a sample
SHARDS_SAMPLED = 8
FIRST_ITEMS = 32  # of a first round, which tells how many make a sample
PARTS_PER_WORKER = 3


@dataclass(frozen=True)
class Timing:
    """Items that one worker made, in how many seconds and bytes."""

    items: int
    seconds: float
    size: int

    @property
    def rate(self) -> float:
        """Returns items a second."""
        return self.items / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Estimate:
    """What is there and what is to come; low and high seconds are those of the fastest and the slowest timing."""

    shards: int
    missing: int
    items_missing: int
    unit: str
    workers: int
    device: str
    rate: float  # items a second, of one worker
    seconds: tuple[float, float, float]  # low, likely, high
    size: float  # bytes
    free: int  # bytes
    basis: str


def estimate(stage: str, name: str, work: Work, *, store: Path, resources: Resources, seconds: float) -> Estimate:
    """Plans the work and times it; a sample takes about `seconds`."""
    if resources.backend == "ray":  # what the cluster has is known when it is at work
        workers, kind = resources.workers, "cpu" if resources.device == "cpu" else ""
    else:
        devices = worker_devices(resources)
        workers, kind = len(devices), devices[0].partition(":")[0]
    finished = Store(store)
    shards, missing = 0, []  # items of missing shards
    timings: list[Timing] = []  # of finished shards that were made on this kind of device
    examples: list[Job[Any]] = []  # every so many-th missing shard, so that they are from all over the set
    step = 1
    with progress(f"plan {stage} {name}", work.total, work.unit) as advance:
        for job in work.jobs:  # their inputs are hashed, which the run itself then need not do
            shards += 1
            advance.skip(job.items)
            if finished.has(job.key):
                checksums = finished.checksums(job.key)
                if checksums and checksums.origin.device.startswith(kind) and checksums.origin.seconds > 0:
                    timings.append(Timing(checksums.origin.items, checksums.origin.seconds, checksums.size))
                continue
            if len(missing) % step == 0:
                examples.append(job)
            missing.append(job.items)
            if len(examples) == 2 * SHARDS_SAMPLED:
                examples, step = examples[::2], 2 * step
    basis = f"as {len(timings):,} finished shards took"
    if not missing:
        basis = "nothing to make"
    elif len(timings) < ENOUGH_RECORDED:
        run = partial(backend(resources).run_jobs, resources=resources, preload=f"fer_pipeline.stages.{stage}")
        timings = _sample(run, work, examples, store=store, workers=workers, seconds=seconds)
        basis = f"by a sample of {sum(timing.items for timing in timings):,} {work.unit}"
    items, rates = sum(timing.items for timing in timings), [timing.rate for timing in timings] or [1.0]
    rate = items / max(sum(timing.seconds for timing in timings), 1e-9)
    workers = min(workers, max(len(missing), 1))
    low, likely, high = (sum(missing) / (workers * pace) for pace in (max(rates), rate or 1.0, min(rates)))
    size = sum(timing.size for timing in timings) / max(items, 1) * sum(missing)
    counts = shards, len(missing), sum(missing), work.unit
    return Estimate(*counts, workers, kind, rate, (low, likely, high), size, shutil.disk_usage(store).free, basis)


def _sample(
    run_jobs: Callable[..., Iterator[Outcome]],
    work: Work,
    jobs: Sequence[Job[Any]],
    *,
    store: Path,
    workers: int,
    seconds: float,
) -> list[Timing]:
    """Times parts of some jobs, made with all workers at once as in a run."""
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".plan.", suffix=".tmp") as scratch:

        def time_parts(count: int, items: int) -> list[Timing]:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            parts = []
            for number in range(count):  # from all over the set, again where there are too few
                part = work.part(jobs[number * len(jobs) // count], items, folder)
                parts.append(replace(part, key=f"{part.key}-{number}"))
            sampled, timings = Store(folder), []
            for outcome in run_jobs(parts, work.setup, store=sampled, advance=lambda _: None):
                checksums = sampled.checksums(outcome.job.key)
                if outcome.fault is not None or checksums is None:
                    name = outcome.job.name
                    raise DataError(f"the sample failed at {name}: {outcome.fault}; correct it and plan again")
                timings.append(Timing(outcome.job.items, outcome.seconds, checksums.size))
            return timings

        pace = statistics.median(timing.rate for timing in time_parts(workers, FIRST_ITEMS))
        items = max(int(pace * seconds / PARTS_PER_WORKER), FIRST_ITEMS)
        return time_parts(workers * PARTS_PER_WORKER, items)
