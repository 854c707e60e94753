"""The flow `refresh`, to be scheduled: new pool shards or raw files in, a new version of everything on a branch out.

Where nothing changed it ends within seconds. Otherwise it reproduces, tells how mined faces and figures differ from the
last committed ones, commits `dvc.lock` on a branch without touching what is checked out, and pushes where it was told
to. Data goes to the remote before the commit that names it, so that nobody finds a version whose data is not there.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from pipelines import showing
from pipelines.aftermath import sign, tidy_up
from pipelines.errors import FlowError, told_in_one_line
from pipelines.graph import read_graph
from pipelines.reproduce import reproduce, run_id
from pipelines.results import Change, changes, results_at, results_now
from pipelines.settings import about
from pipelines.versions import Branch, commit_lock, dirty
from pipelines.workspace import alone, find_workspace
from pipelines.worktree import dvc, git

RECORD = Path("reports/refresh.json")


def _run_name() -> str:
    try:
        return f"refresh · {about(find_workspace(flow_run.parameters.get('workspace')))}"
    except FlowError:
        return "refresh · no workspace"


@flow(name="refresh", flow_run_name=_run_name, persist_result=False)
@told_in_one_line
def refresh(
    targets: list[str] | None = None,
    branch: str = "refresh",
    push: bool = False,
    remote: str | None = None,
    git_remote: str | None = None,
    allow_dirty: bool = False,
    workspace: str | None = None,
    cores: int | None = None,
    gpus: list[str] | None = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Makes a new version where data or settings changed, and tells what changed with it.

    Args:
        targets: Stages, groups of stages or outputs; None: all.
        branch: The git branch that takes the new dvc.lock; it is made where there is none. What is checked out stays.
        push: Whether the artefacts are pushed to the DVC remote.
        remote: The DVC remote; None: the default one.
        git_remote: The git remote that the branch is pushed to, after the artefacts; None: it stays here.
        allow_dirty: Go on where tracked files have uncommitted changes; the version would not say what made it.
        workspace: As for `reproduce`, as the rest.
        cores: How many cores all running stages share.
        gpus: The GPUs for stages that use one.
        gpu_limit: The Prefect concurrency limit that counts GPUs.
        timeout_hours: After this long a stage is ended.
    """
    log, place = get_run_logger(), find_workspace(workspace)
    with alone(place, str(flow_run.name)) as fresh:
        if fresh:
            tidy_up(place, run_id(), log)
        sign(place, run_id())
        if not allow_dirty and (changed := dirty(place)):
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise FlowError(f"uncommitted changes in {place}: {shown}; commit or stash them, or set allow_dirty")
        head = Branch(place, branch)
        stages = read_graph(place, targets)
        stale = [address for address, stage in stages.items() if stage.stale]
        if not stale and head.holds_lock():
            return _deliver(head, push, remote, git_remote, Completed(name="Unchanged", message="Nothing changed."))
        log.info("%d of %d stages are stale: %s", len(stale), len(stages), ", ".join(stale[:10]))
        before = results_at(place, head.base())
        if stale:
            made = reproduce(
                targets=targets,
                workspace=str(place),
                cores=cores,
                gpus=gpus,
                gpu_limit=gpu_limit,
                timeout_hours=timeout_hours,
                return_state=True,
            )
            if not made.is_completed():
                return Failed(message=f"not refreshed: {made.message}")
        now = results_now(place)
        found = changes(before, now) if before else []
        against = f"{head.base()[:10]} ({branch})" if before else ""
        told = _count(len(found)) if before else "the first version"
        if before:
            showing.publish_difference(found, against)
        _record(place, head, found)
        commit = commit_lock(head, subject=f"Refresh: {told}", lines=[_line(one) for one in found])
        log.info("committed dvc.lock as %s on %s", commit[:10], branch)
        return _deliver(head, push, remote, git_remote, Completed(message=f"{told}; {commit[:10]} on {branch}"))


def _deliver(head: Branch, push: bool, remote: str | None, git_remote: str | None, state: State[Any]) -> State[Any]:
    """Pushes what the branch holds and was not pushed yet: also what an earlier run could not bring away."""
    place = head.workspace
    if push and not head.was_pushed(remote or "", git_remote or ""):
        try:
            dvc(place, "push", *(["--remote", remote] if remote else []))
            if git_remote and head.tip():
                git(place, "push", git_remote, f"refs/heads/{head.name}:refs/heads/{head.name}")
        except FlowError as error:
            return Failed(
                message=f"{state.message}; the version is committed but not pushed, the next run tries again: {error}"
            )
        head.set_pushed(remote or "", git_remote or "")
        state.message = f"{state.message}; pushed"
    return state


def _record(place: Path, head: Branch, found: Sequence[Change]) -> None:
    """The difference for machines, beside the report."""
    content = {
        "against": head.base(),
        "changes": [{"what": one.what, "before": one.before, "after": one.after} for one in found],
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    path = place / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _count(changed: int) -> str:
    return f"{changed} figure{'' if changed == 1 else 's'} changed"


def _line(change: Change) -> str:
    before, after = ("-" if one is None else f"{one:.6g}" for one in (change.before, change.after))
    return f"{change.what}: {before} → {after}"
