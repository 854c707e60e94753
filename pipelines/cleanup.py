"""Clean up behind dead runs: end their processes, repair DVC's lock file, mark them as crashed on the server.

`clean_up` is called by the next run, which holds the workspace: whatever else claims to run in it is dead.
"""

import logging
import platform
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Crashed

from pipelines.process_tree import end_orphans
from pipelines.workspace import repair_rwlock

Logger = logging.Logger | logging.LoggerAdapter[Any]
SECONDS_TO_SETTLE = 2.0
ACTIVE = [StateType.RUNNING, StateType.CANCELLING]


def workspace_tag(workspace: Path) -> str:
    """Return the tag of every run in one workspace of one host."""
    return f"workspace:{platform.node()}:{workspace}"


def tag_run(workspace: Path, run: UUID) -> None:
    """Tag a run with its workspace, so that a later run there can tell that it died."""
    with get_client(sync_client=True) as client:
        tags = {*client.read_flow_run(run).tags, workspace_tag(workspace)}
        client.update_flow_run(run, tags=sorted(tags))


def clean_up(workspace: Path, this_run: UUID, log: Logger) -> None:
    """End the processes of dead runs, repair DVC's lock file and mark as crashed what the server takes for alive."""
    if count := end_orphans(workspace):
        log.warning("ended %d processes that a killed run had left behind", count)
    if repaired := repair_rwlock(workspace):
        log.warning("%s", repaired)
    tag = workspace_tag(workspace)
    with get_client(sync_client=True) as client:
        if _find_active(client, tag, this_run):
            time.sleep(SECONDS_TO_SETTLE)  # one that has just unlocked the workspace reports its end after that
        for run in _find_active(client, tag, this_run):
            log.warning("the run %r ended without reporting it: it is marked as crashed", run.name)
            _crash(client, run.id)


def crash_runs_of_worker(client: SyncPrefectClient, worker: str, pool: str) -> None:
    """Mark the runs of a worker that is gone as crashed, which frees their slots."""
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": [*ACTIVE, StateType.PENDING]}}}),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [pool]}}),
    )
    for run in runs:
        if run.labels.get("prefect.worker.name") == worker:
            message = "Its worker was ended. Run it again; finished stages stay."
            client.set_flow_run_state(run.id, Crashed(message=message))


def _find_active(client: SyncPrefectClient, tag: str, this_run: UUID) -> list[FlowRun]:
    runs = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": {"type": {"any_": ACTIVE}}})
    return [run for run in client.read_flow_runs(flow_run_filter=runs) if run.id != this_run]


def _crash(client: SyncPrefectClient, run: UUID) -> None:
    """Mark a flow run as crashed, and those of its tasks that were running."""
    message = "The process of this run died; a later run in the same workspace noticed it and goes on from there."
    flow_run = FlowRunFilter.model_validate({"id": {"any_": [run]}})
    running = TaskRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING]}}})
    for task in client.read_task_runs(flow_run_filter=flow_run, task_run_filter=running):
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    client.set_flow_run_state(run, Crashed(message=message), force=True)
