"""Check the machine, the settings and, where one is named, the Prefect server before a run."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from json import dumps
from pathlib import Path

from fer_pipeline.commands import check
from fer_pipeline.commands.plan import Estimate, StagePlan, plan_stages
from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.progress import format_seconds
from fer_pipeline.core.settings import PARAMS, STORE, Resources, Summary, read_project
from fer_pipeline.health import dvc_project, machine, prefect_server, software
from fer_pipeline.health.dvc_project import read_config
from fer_pipeline.health.machine import link_type
from fer_pipeline.health.software import CheckContext, Finding, grade

# Every function `check_<name>` of these modules, in their order.
CHECKS: dict[str, Callable[[CheckContext], Finding]] = {
    "python": software.check_python,
    **{package: partial(software.compare_version, package) for package in software.PACKAGES},
    **{
        name.removeprefix("check_"): function
        for module in (software, machine, dvc_project, prefect_server)
        for name, function in vars(module).items()
        if name.startswith("check_")
    },
}
SAMPLE_SECONDS = 2.0  # of each set that no shard was made of yet
LABELS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def run(*, plan: bool = True, json: bool = False, params: Path = PARAMS, store: Path = STORE) -> Summary:
    """Look at this machine, its versions, GPUs, disks, limits, remote and Prefect server; say what to correct.

    Args:
        plan: Time samples of missing shards: hours and disk of the run.
        json: Tell it as JSON.
        params: The file of settings.
        store: Where finished shards and the states of unfinished work are kept.
    """
    resources = Resources()
    try:
        settings, resources = Finding("ok", check.run(params=params)), read_project(params).resources
    except PipelineError as error:
        settings = Finding("problem", str(error), f"python -m fer_pipeline check --params {params}")
    context, findings = CheckContext(Path.cwd(), resources), {"settings": settings}
    for name, check_one in CHECKS.items():
        try:
            findings[name] = check_one(context)
        except (PipelineError, OSError) as error:
            findings[name] = Finding("problem", str(error), "correct this first")
    if plan and settings.level == "ok":
        plans = partial(plan_stages, params=params, store=store, seconds=SAMPLE_SECONDS)
        findings["plan"] = check_plan(context, plans)
    keys = ("name", "level", "found", "advice")
    content = [dict(zip(keys, (name, *one), strict=True)) for name, one in findings.items()]
    text = dumps(content, indent=1) if json else format_text(findings)
    return Summary("", text, failed=any(one.level == "problem" for one in findings.values()))


def check_plan(context: CheckContext, get_plans: Callable[[], Iterable[StagePlan]]) -> Finding:
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
    advice = {name: f"; {one.advice}" if one.advice and one.level != "ok" else "" for name, one in findings.items()}
    return "\n".join(f"{LABELS[one.level]:<7}  {key}: {one.message}{advice[key]}" for key, one in findings.items())
