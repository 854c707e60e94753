"""What a killed run left behind: its processes are ended, and the server is told that it is over.

Called by the next run, which holds the workspace: whatever else claims to run in it is dead.
"""

import logging
import platform
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

from pipelines.supervised import end_leftovers
from pipelines.workspace import mend_dvc_lock

Logger = logging.Logger | logging.LoggerAdapter[Any]
SECONDS_TO_SETTLE = 2.0
UNDER_WAY = [StateType.RUNNING.value, StateType.CANCELLING.value]


def workspace_tag(workspace: Path) -> str:
    """The tag of every run in one workspace of one host."""
    return f"workspace:{platform.node()}:{workspace}"


def tidy_up(workspace: Path, this_run: UUID, log: Logger) -> None:
    """Ends what dead runs left: processes, half-written locks, runs that the server takes for alive."""
    if count := end_leftovers(workspace):
        log.warning("ended %d processes that a killed run had left behind", count)
    if mended := mend_dvc_lock(workspace):
        log.warning("%s", mended)
    tag = workspace_tag(workspace)
    with get_client(sync_client=True) as client:
        if _under_way(client, tag, this_run):
            time.sleep(SECONDS_TO_SETTLE)  # one that has just let go of the workspace tells its end after that
        for dead in _under_way(client, tag, this_run):
            log.warning("the run %r died without a word: it is marked as crashed", dead.name)
            _bury(client, dead.id)


def sign(workspace: Path, this_run: UUID) -> None:
    """Tags a run with its workspace, so that a later run there can tell that it died."""
    with get_client(sync_client=True) as client:
        tags = {*client.read_flow_run(this_run).tags, workspace_tag(workspace)}
        client.update_flow_run(this_run, tags=sorted(tags))


def _under_way(client: SyncPrefectClient, tag: str, this_run: UUID) -> list[Any]:
    wanted = FlowRunFilter.model_validate({"tags": {"all_": [tag]}, "state": {"type": {"any_": UNDER_WAY}}})
    return [run for run in client.read_flow_runs(flow_run_filter=wanted) if run.id != this_run]


def _bury(client: SyncPrefectClient, run: UUID) -> None:
    """Marks a flow run as crashed, and those of its tasks that were at work."""
    message = "The process of this run died; a later run in the same workspace found it so, and goes on from there."
    tasks = TaskRunFilter.model_validate({"state": {"type": {"any_": [StateType.RUNNING.value]}}})
    for task in client.read_task_runs(
        flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run]}}), task_run_filter=tasks
    ):
        client.set_task_run_state(task.id, Crashed(message=message), force=True)
    client.set_flow_run_state(run, Crashed(message=message), force=True)
