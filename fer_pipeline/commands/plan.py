"""Estimate, before a long run, what `align` and `embed` have yet to make, and its hours and disk.

The rate is that of finished shards of the same set where there are enough of them; else parts of missing shards are
made and timed, by as many workers as the settings name and on their devices, and thrown away.
"""

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.artifacts.store import Checksums, Store
from fer_pipeline.commands.check import check_for
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.progress import format_seconds, progress
from fer_pipeline.core.settings import PARAMS, STORE, Resources
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.sharding.jobs import Job, Work
from fer_pipeline.sharding.locks import lock_for_run
from fer_pipeline.sharding.run import backend

STAGES = ("align", "embed")
ENOUGH_RECORDED = 3  # finished shards whose rate is worth more than a sample
SHARDS_SAMPLED = 8
FIRST_ITEMS = 32  # of a first round, which tells how many make a sample
PARTS_PER_WORKER = 3


class Estimate(NamedTuple):
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


class StagePlan(NamedTuple):
    """One stage and set: its estimate, or why there can be none yet."""

    stage: str
    name: str
    estimate: Estimate | str


def run(
    stage: Sequence[str] = (),
    *,
    name: Sequence[str] = (),
    faces: Path | None = None,
    model: Path = Path("models/primitive"),
    seconds: float = 20.0,
    json: bool = False,
    params: Path = PARAMS,
    store: Path = STORE,
) -> str:
    """Say before a long run how many shards are missing, how many hours and how much disk they take.

    Args:
        stage: align, embed; else both.
        name: A set; may be said several times. Else all.
        faces: The faces to embed, if not data/faces/<set>/train.
        model: The model to embed with.
        seconds: How long a timed sample of a set may take, at least 1.
        json: Print JSON.
        params: The file of settings.
        store: Where finished shards are kept.
    """
    plans = plan_stages(stage, name, params=params, store=store, faces=faces, model=model, seconds=seconds)
    if json:
        return dumps([_to_json(one) for one in plans], indent=1)
    words = [one.estimate if isinstance(one.estimate, str) else _describe(one.estimate) for one in plans]
    return "\n".join(f"{one.stage} {one.name}: {text}" for one, text in zip(plans, words, strict=True))


def plan_stages(
    stages: Sequence[str] = (),
    names: Sequence[str] = (),
    *,
    params: Path,
    store: Path,
    seconds: float,
    faces: Path | None = None,
    model: Path = Path("models/primitive"),
) -> list[StagePlan]:
    """Plans each stage for each set; where nothing is named, both stages for the sets that the settings give them."""
    if unknown := sorted({*stages} - {*STAGES}):
        raise ConfigError(f"{unknown[0]!r} is not planned; choose from {', '.join(STAGES)}")
    if seconds < 1:
        raise ConfigError(f"--seconds must be at least 1, found {seconds:g}")
    plans: list[StagePlan] = []
    for stage in stages or STAGES:
        project, configs, modules = check_for(stage, params, remembered=store / "memory" / "checked")
        sets = tuple(project.datasets) if stage == "align" else configs[stage].sets
        for name in names or sets:
            if name not in sets:
                raise DataError(f"{params} has no set {name!r} for {stage}; it has {', '.join(sorted(sets))}")
            place = {}
            if stage == "embed":
                place = {"faces": faces or Path("data/faces") / name / "train", "model": model}
            with lock_for_run(store, f"{stage}@{name}"):
                try:
                    work = modules[stage].plan(configs[stage], project, **place, name=name, store=store)
                    result = estimate(stage, name, work, store=store, resources=project.resources, seconds=seconds)
                except PipelineError as error:
                    result = str(error)
            plans.append(StagePlan(stage, name, result))
    return plans


def estimate(stage: str, name: str, work: Work, *, store: Path, resources: Resources, seconds: float) -> Estimate:
    """Plans the work and times it; a sample takes about `seconds`."""
    if resources.backend == "ray":  # what the cluster has is known when it is at work
        workers, kind = resources.workers, "cpu" if resources.device == "cpu" else ""
    else:
        devices = worker_devices(resources)
        workers, kind = len(devices), devices[0].partition(":")[0]
    finished = Store(store)
    shards, missing = 0, []  # items of missing shards
    timings: list[Checksums] = []  # of finished shards that were made on this kind of device
    examples: list[Job[Any]] = []  # every so many-th missing shard, so that they are from all over the set
    step = 1
    with progress(f"plan {stage} {name}", work.total, work.unit) as advance:
        for job in work.jobs:  # their inputs are hashed, which the run itself then need not do
            shards += 1
            advance(job.items, earlier=True)
            if finished.has(job.key):
                checksums = finished.checksums(job.key)
                if checksums and checksums.origin.device.startswith(kind) and checksums.origin.seconds > 0:
                    timings.append(checksums)
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
        timings = _sample(stage, work, examples, store=store, resources=resources, workers=workers, seconds=seconds)
        basis = f"by a sample of {sum(timing.origin.items for timing in timings):,} {work.unit}"
    items, rates = sum(timing.origin.items for timing in timings), [_rate(timing) for timing in timings] or [1.0]
    rate = items / max(sum(timing.origin.seconds for timing in timings), 1e-9)
    workers = min(workers, max(len(missing), 1))
    low, likely, high = (sum(missing) / (workers * pace) for pace in (max(rates), rate or 1.0, min(rates)))
    size = sum(timing.size for timing in timings) / max(items, 1) * sum(missing)
    counts = shards, len(missing), sum(missing), work.unit
    return Estimate(*counts, workers, kind, rate, (low, likely, high), size, shutil.disk_usage(store).free, basis)


def _rate(timing: Checksums) -> float:
    return timing.origin.items / max(timing.origin.seconds, 1e-9)


def _sample(
    stage: str, work: Work, jobs: Sequence[Job[Any]], *, store: Path, resources: Resources, workers: int, seconds: float
) -> list[Checksums]:
    """Times parts of some jobs, made with all workers at once as in a run: a short round, then one of its pace."""
    store.mkdir(parents=True, exist_ok=True)
    timings: list[Checksums] = []
    with tempfile.TemporaryDirectory(dir=store, prefix=".plan.", suffix=".tmp") as scratch:
        for count in (workers, workers * PARTS_PER_WORKER):
            pace = statistics.median(map(_rate, timings)) if timings else 0
            items = max(int(pace * seconds / PARTS_PER_WORKER), FIRST_ITEMS)
            folder = Path(tempfile.mkdtemp(dir=scratch))
            # From all over the set, again where there are too few.
            parts = [work.part(jobs[number * len(jobs) // count], items, folder) for number in range(count)]
            parts = [replace(part, key=f"{part.key}-{number}") for number, part in enumerate(parts)]
            options = {"resources": resources, "preload": f"fer_pipeline.stages.{stage}", "advance": lambda _: None}
            sampled, timings = Store(folder), []
            for outcome in backend(resources).run_jobs(parts, work.setup, store=sampled, **options):
                checksums = sampled.checksums(outcome.job.key)
                if outcome.fault is not None or checksums is None:
                    name = outcome.job.name
                    raise DataError(f"the sample failed at {name}: {outcome.fault}; correct it and plan again")
                timings.append(replace(checksums, origin=replace(checksums.origin, seconds=outcome.seconds)))
    return timings


def _to_json(plan: StagePlan) -> dict[str, Any]:
    about, work = {"stage": plan.stage, "name": plan.name}, plan.estimate
    if isinstance(work, str):
        return {**about, "fault": work}
    ends = zip(("low", "likely", "high"), work.seconds, strict=True)
    return {
        **about,
        "shards": {"all": work.shards, "missing": work.missing},
        work.unit: work.items_missing,
        "hours": {end: round(seconds / 3600, 6) for end, seconds in ends},
        "workers": work.workers,
        "device": work.device,
        "rate": round(work.rate, 3),
        "disk": {"needed": round(work.size), "free": work.free},
        "basis": work.basis,
    }


def _describe(work: Estimate) -> str:
    finished = f"{work.shards - work.missing:,} of {work.shards:,} shards are there"
    if not work.missing:
        return f"{finished}, nothing to make"
    low, likely, high = map(format_seconds, work.seconds)
    workers = f"{work.workers} {work.device or 'Ray'} workers at {work.rate:,.1f} {work.unit}/s each"
    disk = f"{size_of(work.size)} of disk, {size_of(work.free)} are free"
    short = "; THAT IS TOO LITTLE" if work.size > work.free else ""
    items = f"{work.items_missing:,} {work.unit} to come"
    return f"{finished}, {items}: {likely} ({low} to {high}) with {workers}, {work.basis}; {disk}{short}"
