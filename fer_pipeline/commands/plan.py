"""Settings and what lies on the disk in; what `align` and `embed` have yet to make, its hours and its disk, out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_pipeline.commands.check import Ready, check_for
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.progress import format_seconds
from fer_pipeline.sharding.estimates import Estimate, estimate
from fer_pipeline.sharding.jobs import Work
from fer_pipeline.sharding.locks import at_work

STAGES = ("align", "embed")


@dataclass(frozen=True)
class Planned:
    """One stage and set: its estimate, or why there can be none yet."""

    stage: str
    name: str
    found: Estimate | str

    @property
    def line(self) -> str:
        """What a person is told."""
        return f"{self.stage} {self.name}: {self.found if isinstance(self.found, str) else _words(self.found)}"

    @property
    def content(self) -> dict[str, Any]:
        """The same as JSON."""
        about = {"stage": self.stage, "name": self.name}
        if isinstance(self.found, str):
            return {**about, "fault": self.found}
        low, likely, high = (round(seconds / 3600, 6) for seconds in self.found.seconds)
        return {
            **about,
            "shards": {"all": self.found.shards, "missing": self.found.missing},
            self.found.unit: self.found.items_missing,
            "hours": {"low": low, "likely": likely, "high": high},
            "workers": self.found.workers,
            "device": self.found.device,
            "rate": round(self.found.rate, 3),
            "disk": {"needed": round(self.found.size), "free": self.found.free},
            "basis": self.found.basis,
        }


def run(
    stages: Sequence[str],
    names: Sequence[str],
    *,
    params: Path,
    store: Path,
    faces: Path | None = None,
    model: Path = Path("models/primitive"),
    seconds: float = 20.0,
) -> list[Planned]:
    """Plans each stage for each set; where nothing is named, both stages for the sets that the settings give them."""
    planned: list[Planned] = []
    if strangers := sorted({*stages} - {*STAGES}):
        raise ConfigError(f"{strangers[0]!r} is not planned; choose from {', '.join(STAGES)}")
    for stage in stages or STAGES:
        ready = check_for(stage, params, remembered=store / "memory" / "checked")
        sets = tuple(ready.project.datasets) if stage == "align" else ready.config.sets
        for name in names or sets:
            if name not in sets:
                raise DataError(f"{params} has no set {name!r} for {stage}; it has {', '.join(sorted(sets))}")
            with at_work(store, f"{stage}@{name}"):
                try:
                    work = _work(ready, stage, name, store=store, faces=faces, model=model)
                    resources = ready.project.resources
                    found = estimate(stage, name, work, store=store, resources=resources, seconds=seconds)
                except PipelineError as error:
                    found = str(error)
            planned.append(Planned(stage, name, found))
    return planned


def _work(ready: Ready, stage: str, name: str, *, store: Path, faces: Path | None, model: Path) -> Work:
    if stage == "align":
        return ready.module.plan(ready.config, ready.project, name=name, store=store)
    place = faces or Path("data/faces") / name / "train"
    return ready.module.plan(ready.config, name=name, faces=place, model=model, store=store)


def _words(found: Estimate) -> str:
    there = f"{found.shards - found.missing:,} of {found.shards:,} shards are there"
    if not found.missing:
        return f"{there}, nothing to make"
    low, likely, high = found.seconds
    time = f"{format_seconds(likely)} ({format_seconds(low)} to {format_seconds(high)})"
    where = f"{found.workers} {found.device or 'Ray'} workers at {found.rate:,.1f} {found.unit}/s each"
    disk = f"{size_of(found.size)} of disk, {size_of(found.free)} are free"
    short = "; THAT IS TOO LITTLE" if found.size > found.free else ""
    return f"{there}, {found.items_missing:,} {found.unit} to come: {time} with {where}, {found.basis}; {disk}{short}"
