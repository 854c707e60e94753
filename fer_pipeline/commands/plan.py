"""Estimate, before a long run, what `align` and `embed` have yet to make, and its hours and disk."""

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import Any, NamedTuple

from fer_pipeline.commands.check import check_for
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.progress import format_seconds
from fer_pipeline.core.settings import PARAMS, STORE
from fer_pipeline.sharding.estimates import Estimate, estimate
from fer_pipeline.sharding.locks import lock_for_run

STAGES = ("align", "embed")


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
            place = {"project": project}
            if stage == "embed":
                place = {"faces": faces or Path("data/faces") / name / "train", "model": model}
            with lock_for_run(store, f"{stage}@{name}"):
                try:
                    work = modules[stage].plan(configs[stage], **place, name=name, store=store)
                    result = estimate(stage, name, work, store=store, resources=project.resources, seconds=seconds)
                except PipelineError as error:
                    result = str(error)
            plans.append(StagePlan(stage, name, result))
    return plans


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
