"""Estimate the time and the disk that the missing shards of one stage and set will take.

The rate is that of finished shards of the same set where there are enough of them; else parts of missing shards are
made and timed, by as many workers as the settings name and on their devices, and thrown away.
"""

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.sharding.jobs import Job, Work
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


@dataclass
class Inventory:
    """The shards of some work: how many there are and are missing, the timings of finished and a few missing ones."""

    shards: int = 0
    missing: int = 0
    items_missing: int = 0
    timings: list[Timing] = field(default_factory=list)
    examples: list[Job[Any]] = field(default_factory=list)


def estimate(stage: str, name: str, work: Work, *, store: Path, resources: Resources, seconds: float) -> Estimate:
    """Plans the work and times it; a sample takes about `seconds`."""
    if resources.backend == "ray":  # what the cluster has is known when it is at work
        workers, kind = resources.workers, "cpu" if resources.device == "cpu" else ""
    else:
        devices = worker_devices(resources)
        workers, kind = len(devices), devices[0].partition(":")[0]
    inventory = take_inventory(f"plan {stage} {name}", work, store=store, kind=kind)
    timings, basis = inventory.timings, f"as {len(inventory.timings):,} finished shards took"
    if not inventory.missing:
        basis = "nothing to make"
    elif len(timings) < ENOUGH_RECORDED:
        preload, jobs = f"fer_pipeline.stages.{stage}", inventory.examples
        timings = _sample(preload, work, jobs, store=store, resources=resources, workers=workers, seconds=seconds)
        basis = f"by a sample of {sum(timing.items for timing in timings):,} {work.unit}"
    items = sum(timing.items for timing in timings)
    rate = items / max(sum(timing.seconds for timing in timings), 1e-9)
    rates = [timing.rate for timing in timings] or [1.0]
    workers = min(workers, max(inventory.missing, 1))
    low, likely, high = (inventory.items_missing / (workers * one) for one in (max(rates), rate or 1.0, min(rates)))
    return Estimate(
        shards=inventory.shards,
        missing=inventory.missing,
        items_missing=inventory.items_missing,
        unit=work.unit,
        workers=workers,
        device=kind,
        rate=rate,
        seconds=(low, likely, high),
        size=sum(timing.size for timing in timings) / max(items, 1) * inventory.items_missing,
        free=shutil.disk_usage(store).free,
        basis=basis,
    )


def take_inventory(description: str, work: Work, *, store: Path, kind: str) -> Inventory:
    """Counts the shards and collects the timings of those that were made on a `kind` of device ('' for any).

    Their inputs are hashed, which the run itself then need not do.
    """
    finished, inventory = Store(store), Inventory()
    step = 1  # every so many-th missing shard is an example, so that they are from all over the set
    with progress(description, work.total, work.unit) as advance:
        for job in work.jobs:
            inventory.shards += 1
            advance.skip(job.items)
            if finished.has(job.key):
                checksums = finished.checksums(job.key)
                origin = checksums.origin if checksums else None
                if checksums and origin and origin.device.startswith(kind) and origin.seconds > 0:
                    inventory.timings.append(Timing(origin.items, origin.seconds, checksums.size))
                continue
            if inventory.missing % step == 0:
                inventory.examples.append(job)
            inventory.missing += 1
            inventory.items_missing += job.items
            if len(inventory.examples) == 2 * SHARDS_SAMPLED:
                inventory.examples, step = inventory.examples[::2], 2 * step
    return inventory


def _sample(
    preload: str,
    work: Work,
    jobs: Sequence[Job[Any]],
    *,
    store: Path,
    resources: Resources,
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
            made, timings = Store(folder), []
            for outcome in backend(resources).run_jobs(
                parts, work.setup, store=made, resources=resources, preload=preload, advance=lambda _: None
            ):
                if outcome.fault is not None:
                    name = outcome.job.name
                    raise DataError(f"the sample failed at {name}: {outcome.fault}; correct it and plan again")
                checksums = made.checksums(outcome.job.key)
                assert checksums is not None
                timings.append(Timing(outcome.job.items, outcome.seconds, checksums.size))
            return timings

        pace = statistics.median(timing.rate for timing in time_parts(workers, FIRST_ITEMS))
        items = max(int(pace * seconds / PARTS_PER_WORKER), FIRST_ITEMS)
        return time_parts(workers * PARTS_PER_WORKER, items)
