"""The machine, the settings and, where one is named, the Prefect server in; findings with their cures out."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fer_pipeline.commands import plan
from fer_pipeline.commands.check import check
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.progress import format_seconds
from fer_pipeline.core.settings import Resources, read_project
from fer_pipeline.health import disks, gpus, machine, server, tracking, versions
from fer_pipeline.health.disks import link_type
from fer_pipeline.health.dvc_config import read_config
from fer_pipeline.health.finding import Finding, Place
from fer_pipeline.sharding.estimates import Estimate

Check = Callable[[Place], Finding]

CHECKS: tuple[Check, ...] = (
    versions.python,
    versions.torch,
    versions.torchvision,
    versions.dvc,
    versions.prefect,
    versions.fastapi,
    versions.sqlalchemy,
    versions.mtcnn,
    gpus.driver,
    gpus.gpu,
    gpus.faiss,
    disks.space,
    disks.inodes,
    disks.links,
    disks.site_cache,
    machine.memory,
    machine.processors,
    machine.open_files,
    machine.shared_memory,
    machine.clock,
    tracking.remote,
    tracking.lock_file,
    tracking.outputs,
    server.server,
    server.server_version,
    server.gpu_limit,
    server.workers,
    server.server_clock,
)
SAMPLE_SECONDS = 2.0  # of each set that no shard was made of yet
MARK = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def run(params: Path, *, store: Path, with_plan: bool = True) -> list[Finding]:
    """Runs every check; the plan, which times samples of missing shards, is the slow one."""
    found, resources = settings(params)
    place = Place(Path.cwd(), resources)
    findings = [found, *(_held(one, place) for one in CHECKS)]
    if with_plan and found.level == "ok":
        findings.append(room(place, lambda: planned(params, store)))
    return findings


def _held(one: Check, place: Place) -> Finding:
    try:
        return one(place)
    except (PipelineError, OSError) as error:
        name = getattr(one, "__name__", "") or getattr(one, "args", ["check"])[0]
        return Finding(str(name), "problem", str(error), "mend this first")


def settings(params: Path) -> tuple[Finding, Resources]:
    """Whether all settings hold, and the resources in them."""
    try:
        told = check(params).line
        return Finding("settings", "ok", told), read_project(params).resources
    except PipelineError as error:
        return Finding(
            "settings", "problem", str(error), f"python -m fer_pipeline check --params {params}"
        ), Resources()


def planned(params: Path, store: Path) -> list[plan.StagePlan]:
    """What `align` and `embed` have yet to make, as far as it can be told today."""
    return plan.plan_stages(params=params, store=store, seconds=SAMPLE_SECONDS)


def room(place: Place, plans: Callable[[], Iterable[plan.StagePlan]]) -> Finding:
    """The disk that the missing shards take, against what is free where they go."""
    try:
        known = list(plans())
    except PipelineError as error:
        return Finding("plan", "warning", f"cannot be told: {error}", "python -m fer_pipeline plan")
    estimates = [one.estimate for one in known if isinstance(one.estimate, Estimate)]
    later = [f"{one.stage} {one.name}" for one in known if not isinstance(one.estimate, Estimate)]
    rest = f"; not to be told yet: {', '.join(later)}" if later else ""
    if not estimates:
        return Finding("plan", "warning", f"nothing can be told yet{rest}", "python -m fer_pipeline plan")
    config = read_config(place.root)
    kind = link_type(config, place.root)
    # With copies for links, DVC's cache holds every shard once more.
    needed = sum(one.size for one in estimates) * (2 if kind == "copy" else 1)
    free = min(one.free for one in estimates)
    time = format_seconds(sum(one.seconds[1] for one in estimates))
    found = f"{size_of(needed)} of disk and {time} to come (by {kind} into DVC's cache), {size_of(free)} are free{rest}"
    if needed > free:
        return Finding("plan", "problem", found, "a larger disk, or fewer pools; python -m fer_pipeline prune")
    if needed > 0.8 * free:
        return Finding("plan", "warning", found, "python -m fer_pipeline prune, dvc gc --workspace")
    return Finding("plan", "ok", found)


def text(findings: Iterable[Finding]) -> str:
    """One line a finding, its cure after it."""
    lines: list[str] = []
    for one in findings:
        cure = f"; {one.cure}" if one.cure and one.level != "ok" else ""
        lines.append(f"{MARK[one.level]}  {one.name}: {one.found}{cure}")
    return "\n".join(lines)


def content(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The same as JSON."""
    return [asdict(one) for one in findings]
