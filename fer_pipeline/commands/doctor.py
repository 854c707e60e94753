"""Check the machine, the settings and, where one is named, the Prefect server before a run."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fer_pipeline.commands import plan
from fer_pipeline.commands.check import check
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.progress import format_seconds
from fer_pipeline.core.settings import Resources, read_project
from fer_pipeline.health import gpus, machine, prefect_server, software, tracking
from fer_pipeline.health.dvc_project import read_config
from fer_pipeline.health.findings import CheckContext, Finding, grade
from fer_pipeline.health.machine import link_type
from fer_pipeline.sharding.estimates import Estimate

CHECKS: dict[str, Callable[[CheckContext], Finding]] = {
    "python": software.check_python,
    **{package: partial(software.check_package, package) for package in software.PACKAGES},
    "torchvision": software.check_torchvision,
    "mtcnn": software.check_mtcnn,
    "driver": gpus.check_driver,
    "gpu": gpus.check_gpu,
    "faiss": gpus.check_faiss,
    "space": machine.check_space,
    "inodes": machine.check_inodes,
    "links": machine.check_links,
    "site_cache": machine.check_site_cache,
    "memory": machine.check_memory,
    "processors": machine.check_processors,
    "open_files": machine.check_open_files,
    "shared_memory": machine.check_shared_memory,
    "clock": machine.check_clock,
    "remote": tracking.check_remote,
    "lock_file": tracking.check_lock_file,
    "outputs": tracking.check_outputs,
    "server": prefect_server.check_server,
    "server_version": prefect_server.check_server_version,
    "gpu_limit": prefect_server.check_gpu_limit,
    "workers": prefect_server.check_workers,
    "server_clock": prefect_server.check_server_clock,
}
SAMPLE_SECONDS = 2.0  # of each set that no shard was made of yet
LABELS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def run(params: Path, *, store: Path, with_plan: bool = True) -> dict[str, Finding]:
    """Runs every check and returns the findings by the names of the checks.

    Args:
        params: The settings.
        store: The folder of finished shards.
        with_plan: Time samples of missing shards for hours and disk of the run, which is the slow check.
    """
    settings, resources = check_settings(params)
    context, findings = CheckContext(Path.cwd(), resources), {"settings": settings}
    for name, check_one in CHECKS.items():
        try:
            findings[name] = check_one(context)
        except (PipelineError, OSError) as error:
            findings[name] = Finding("problem", str(error), "correct this first")
    if with_plan and settings.level == "ok":
        findings["plan"] = check_plan(context, lambda: plan_run(params, store))
    return findings


def check_settings(params: Path) -> tuple[Finding, Resources]:
    """Checks all settings; returns the resources in them, too."""
    try:
        return Finding("ok", check(params).line), read_project(params).resources
    except PipelineError as error:
        return Finding("problem", str(error), f"python -m fer_pipeline check --params {params}"), Resources()


def plan_run(params: Path, store: Path) -> list[plan.StagePlan]:
    """Plans what `align` and `embed` have yet to make, as far as it is known today."""
    return plan.plan_stages(params=params, store=store, seconds=SAMPLE_SECONDS)


def check_plan(context: CheckContext, get_plans: Callable[[], Iterable[plan.StagePlan]]) -> Finding:
    """Checks the disk that the missing shards take against what is free where they go."""
    try:
        plans = list(get_plans())
    except PipelineError as error:
        return Finding("warning", f"unknown: {error}", "python -m fer_pipeline plan")
    estimates = [one.estimate for one in plans if isinstance(one.estimate, Estimate)]
    unknown = [f"{one.stage} {one.name}" for one in plans if not isinstance(one.estimate, Estimate)]
    rest = f"; not known yet: {', '.join(unknown)}" if unknown else ""
    if not estimates:
        return Finding("warning", f"nothing is known yet{rest}", "python -m fer_pipeline plan")
    kind = link_type(read_config(context.root), context.root)
    # With copies for links, DVC's cache holds every shard once more.
    needed = sum(one.size for one in estimates) * (2 if kind == "copy" else 1)
    free = min(one.free for one in estimates)
    time = format_seconds(sum(one.seconds[1] for one in estimates))
    message = f"{size_of(needed)} of disk and {time} to come (by {kind} into DVC's cache), {size_of(free)} are free"
    advice = "python -m fer_pipeline prune, dvc gc --workspace"
    if needed > free:
        advice = "a larger disk, or fewer pools; python -m fer_pipeline prune"
    return grade(message + rest, advice, problem=needed > free, warning=needed > 0.8 * free)


def format_text(findings: Mapping[str, Finding]) -> str:
    """Formats one line a finding, followed by its advice."""
    lines = [f"{LABELS[one.level]:<7}  {name}: {one.message}" for name, one in findings.items()]
    advice = [f"; {one.advice}" if one.advice and one.level != "ok" else "" for one in findings.values()]
    return "\n".join(map("".join, zip(lines, advice, strict=True)))


def to_json(findings: Mapping[str, Finding]) -> list[dict[str, Any]]:
    """Returns the findings as JSON."""
    return [
        {"name": name, "level": one.level, "found": one.message, "advice": one.advice} for name, one in findings.items()
    ]
