"""Make and commit a new version where data or settings changed; made to be scheduled.

Where nothing changed the flow `refresh` ends within seconds. Otherwise it reproduces, compares mined faces and figures
with the last committed ones, commits `dvc.lock` to a branch without touching what is checked out, and pushes if asked
to. Data goes to the remote before the commit that names it, so that nobody finds a version whose data is not there.
"""

import json
from datetime import UTC, datetime
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from pipelines import FlowError, RefusedError
from pipelines.artifacts import Change, compare_results, publish_difference, read_results, read_results_at
from pipelines.cleanup import fail_in_one_line
from pipelines.repository import Branch, commit_lock, list_uncommitted, run_dvc, run_git
from pipelines.reproduce import Gpus, Targets, name_run, own_workspace, reproduce
from pipelines.workspace import find_workspace, read_graph

RECORD = "reports/refresh.json"  # the difference for machines, beside the report


@flow(name="refresh", flow_run_name=name_run, persist_result=False)
@fail_in_one_line
def refresh(
    targets: Targets = None,
    branch: str = "refresh",
    push: bool = False,
    remote: str | None = None,
    git_remote: str | None = None,
    allow_dirty: bool = False,
    workspace: str | None = None,
    cores: int | None = None,
    gpus: Gpus = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Make a new version where data or settings changed, and show what changed with it.

    Args:
        targets: Stages, groups of stages or outputs; None: all.
        branch: The git branch that takes the new dvc.lock; it is made where there is none. What is checked out stays.
        push: Whether the artefacts are pushed to the DVC remote.
        remote: The DVC remote; None: the default one.
        git_remote: The git remote that the branch is pushed to, after the artefacts; None: it stays here.
        allow_dirty: Go on where tracked files have uncommitted changes; the version would not say what made it.
        workspace: The folder of dvc.yaml. None: PIPELINES_WORKSPACE, or the working directory.
        cores: How many cores all running stages share.
        gpus: The GPUs for stages that use one.
        gpu_limit: The Prefect concurrency limit that counts GPUs.
        timeout_hours: After this long a stage is ended.
    """
    log, folder = get_run_logger(), find_workspace(workspace)
    with own_workspace(folder, str(flow_run.name)):
        if not allow_dirty and (changed := list_uncommitted(folder)):
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise RefusedError(f"uncommitted changes in {folder}: {shown}; commit or stash them, or set allow_dirty")
        head = Branch(folder, branch)
        stages = read_graph(folder, targets)
        stale = [address for address, stage in stages.items() if stage.stale]
        if not stale and head.holds_version():
            state = Completed(name="Unchanged", message="Nothing changed.")
        else:
            log.info("%d of %d stages are stale: %s", len(stale), len(stages), ", ".join(stale[:10]))
            before, outcomes = read_results_at(folder, head.base()), None
            if stale:
                reproduced = reproduce(
                    targets=targets, workspace=str(folder), cores=cores, gpus=gpus, gpu_limit=gpu_limit,
                    timeout_hours=timeout_hours, return_state=True,
                )  # fmt: skip
                if reproduced.is_cancelled():
                    return Cancelled(message=f"not refreshed: {reproduced.message}")
                if not reproduced.is_completed():
                    return Failed(message=f"not refreshed: {reproduced.message}")
                outcomes = cast(dict[str, str], reproduced.result())
            after = read_results(folder, outcomes)
            changes, summary = compare_results(before, after) if before else [], "the first version"
            if before:
                summary = f"{len(changes)} figure{'' if len(changes) == 1 else 's'} changed"
                publish_difference(changes, f"{head.base()[:10]} ({branch})", after.withheld)
            made = datetime.now(UTC).isoformat(timespec="seconds")
            record = {"against": head.base(), "changes": [change._asdict() for change in changes], "made": made}
            (folder / RECORD).parent.mkdir(parents=True, exist_ok=True)
            (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            commit = commit_lock(head, subject=f"Refresh: {summary}", lines=[_format(change) for change in changes])
            log.info("committed dvc.lock as %s on %s", commit[:10], branch)
            state = Completed(message=f"{summary}; {commit[:10]} on {branch}")
        remotes = remote or "", git_remote or ""
        if push and not head.was_pushed(*remotes):  # what an earlier run could not push, too
            try:
                run_dvc(folder, "push", *([f"--remote={remote}"] if remote else []))
                if git_remote and head.tip():
                    run_git(folder, "push", "--", git_remote, f"{head.ref}:{head.ref}")
            except FlowError as error:
                later = "the version is committed but not pushed, the next run tries again"
                return Failed(message=f"{state.message}; {later}: {error}")
            head.set_pushed(*remotes)
            state.message = f"{state.message}; pushed"
        return state


def _format(change: Change) -> str:
    before, after = ("-" if value is None else f"{value:.6g}" for value in (change.before, change.after))
    return f"{change.what}: {before} → {after}"
