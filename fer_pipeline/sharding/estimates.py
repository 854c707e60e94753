"""What a long run will take: the work of one stage and set in; shards there and missing, time and disk out.

The rate is that of finished shards of the same set where there are enough of them; else parts of missing shards are
made and timed, by as many workers as the settings name and on their devices, and thrown away.
"""

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
FIRST_ITEMS = 32  # of the first look, which tells how many make a sample
PARTS_A_WORKER = 3


@dataclass(frozen=True)
class Timing:
    """Items that one worker made, in so many seconds and bytes."""

    items: int
    seconds: float
    size: int

    @property
    def rate(self) -> float:
        return self.items / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Estimate:
    """What is there and what is to come; seconds and bytes, low and high from the slowest and fastest timing."""

    shards: int
    missing: int
    items_missing: int
    unit: str
    workers: int
    device: str
    rate: float  # of one worker
    seconds: tuple[float, float, float]  # low, likely, high
    size: float
    free: int
    basis: str


@dataclass(frozen=True)
class Inventory:
    """The shards of some work: how many there are and are missing, and a few of those that are missing."""

    shards: int
    missing: int
    items_missing: int
    recorded: tuple[Timing, ...]
    some: tuple[Job[Any], ...]


def estimate(stage: str, name: str, work: Work, *, store: Path, resources: Resources, seconds: float) -> Estimate:
    """Plans the work and times it; a sample takes about `seconds`."""
    if resources.backend == "ray":  # what the cluster has is known when it is at work
        workers, kind = resources.workers, "cpu" if resources.device == "cpu" else ""
    else:
        devices = worker_devices(resources)
        workers, kind = len(devices), devices[0].partition(":")[0]
    found = take_stock(f"plan {stage} {name}", work, store=store, kind=kind)
    timings, basis = found.recorded, f"as {len(found.recorded):,} finished shards took"
    if found.missing and len(timings) < ENOUGH_RECORDED:
        preload = f"fer_pipeline.stages.{stage}"
        timings = sample(
            work, found.some, store=store, resources=resources, workers=workers, seconds=seconds, preload=preload
        )
        basis = f"by a sample of {sum(timing.items for timing in timings):,} {work.unit}"
    made = sum(timing.items for timing in timings)
    rate = made / max(sum(timing.seconds for timing in timings), 1e-9)
    rates = [timing.rate for timing in timings] or [1.0]
    workers = min(workers, max(found.missing, 1))
    low, likely, high = (found.items_missing / (workers * one) for one in (max(rates), rate or 1.0, min(rates)))
    return Estimate(
        shards=found.shards,
        missing=found.missing,
        items_missing=found.items_missing,
        unit=work.unit,
        workers=workers,
        device=kind,
        rate=rate,
        seconds=(low, likely, high),
        size=sum(timing.size for timing in timings) / max(made, 1) * found.items_missing,
        free=shutil.disk_usage(store).free,
        basis=basis if found.missing else "nothing to make",
    )


def take_stock(description: str, work: Work, *, store: Path, kind: str) -> Inventory:
    """Which shards are there, and the timings of those that were made on a `kind` of device ('' for any).

    Their inputs are hashed, which the run itself then need not do.
    """
    kept, shards, items = Store(store), 0, 0
    recorded: list[Timing] = []
    missing: list[Job[Any]] = []
    step = 1  # every so many-th missing shard is remembered, so that they are from all over the set
    count = 0
    with progress(description, work.total, work.unit) as advance:
        for job in work.jobs:
            shards += 1
            advance.skip(job.items)
            if kept.has(job.key):
                seal = kept.seal(job.key)
                if seal is not None and seal.origin.device.startswith(kind) and seal.origin.seconds > 0:
                    recorded.append(Timing(seal.origin.items, seal.origin.seconds, seal.size))
                continue
            items += job.items
            if count % step == 0:
                missing.append(job)
            count += 1
            if len(missing) == 2 * SHARDS_SAMPLED:
                missing, step = missing[::2], 2 * step
    return Inventory(shards, count, items, tuple(recorded), tuple(missing))


def sample(
    work: Work,
    jobs: Sequence[Job[Any]],
    *,
    store: Path,
    resources: Resources,
    workers: int,
    seconds: float,
    preload: str,
) -> tuple[Timing, ...]:
    """Timings of parts of some jobs, made with all workers at once as in a run."""
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".plan.", suffix=".tmp") as folder:
        look = _parts(work, jobs, workers, FIRST_ITEMS, Path(folder) / "look")
        first = _timed(work, look, Path(folder) / "look", resources, preload)
        pace = statistics.median(timing.rate for timing in first)
        items = max(int(pace * seconds / PARTS_A_WORKER), FIRST_ITEMS)
        parts = _parts(work, jobs, workers * PARTS_A_WORKER, items, Path(folder) / "parts")
        return _timed(work, parts, Path(folder) / "parts", resources, preload)


def _parts(work: Work, jobs: Sequence[Job[Any]], count: int, items: int, folder: Path) -> list[Job[Any]]:
    folder.mkdir()
    chosen = [jobs[number * len(jobs) // count] for number in range(count)]  # over all, again where there are too few
    parts = [work.part(job, items, folder) for job in chosen]
    return [replace(part, key=f"{part.key}-{number}") for number, part in enumerate(parts)]


def _timed(
    work: Work, parts: Sequence[Job[Any]], folder: Path, resources: Resources, preload: str
) -> tuple[Timing, ...]:
    kept = Store(folder)
    outcomes = backend(resources)(
        parts, work.begin, store=folder, owner="", resources=resources, preload=preload, advance=lambda _: None
    )
    timings: list[Timing] = []
    for outcome in outcomes:
        if outcome.fault is not None:
            raise DataError(f"the sample failed at {outcome.job.name}: {outcome.fault}; mend it and plan again")
        seal = kept.seal(outcome.job.key)
        assert seal is not None
        timings.append(Timing(outcome.job.items, outcome.seconds, seal.size))
    return tuple(timings)
