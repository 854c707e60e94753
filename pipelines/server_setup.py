"""What a Prefect server has to know before flows can run: pool, GPU slots, deployments, what to do about dead runs.

In: the address of a running server. Out: the same server, set up; doing it twice changes nothing.
"""

import sys
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from pipelines.errors import FlowError
from pipelines.programs import Programs

POOL = "local"
GPU_LIMIT = "gpu"
DEAD_RUN = Path(__file__).with_name("deployments") / "automations" / "dead-run.yaml"


def ensure_pool(client: SyncPrefectClient) -> None:
    """Makes the process pool where it is missing."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Processes of one host that share one workspace."
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template, description=description)
        )
        return
    if pool.type != "process":
        raise FlowError(
            f"the work pool {POOL!r} is of type {pool.type}, not process; delete it, or use another PREFECT_HOME"
        )


def ensure_gpu_limit(client: SyncPrefectClient, gpus: int) -> str:
    """Makes the limit where it is missing, one slot a GPU; a line on it. What a person has set stays."""

    found = "no GPU found" if not gpus else f"{gpus} {'GPU' if gpus == 1 else 'GPUs'} found"
    try:
        slots = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        slots = max(gpus, 1)
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=slots))
        return f"limit {GPU_LIMIT!r}: {_slots(slots)} ({found})"
    cure = f"; change it with: prefect gcl update {GPU_LIMIT} --limit {max(gpus, 1)}" if slots != max(gpus, 1) else ""
    return f"limit {GPU_LIMIT!r}: {_slots(slots)}, as it was ({found}{cure})"


def ensure_dead_run_automation(client: SyncPrefectClient, source: Path = DEAD_RUN) -> None:
    """Makes the automation that crashes runs without a heartbeat, where none of its name is there."""

    automation = AutomationCore.model_validate(yaml.safe_load(source.read_text(encoding="utf-8")))
    if not client.read_automations_by_name(automation.name):
        client.create_automation(automation)


def deploy(client: SyncPrefectClient, programs: Programs, prefect_file: Path) -> list[str]:
    """Brings the deployments of `prefect_file` to the server; their names. A schedule that was switched on stays on."""
    running = {
        (deployment.id, schedule.id)
        for deployment in client.read_deployments()
        for schedule in deployment.schedules
        if schedule.active
    }
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]
    ended = programs.finish(command)
    if ended.reason == "stopped":
        return []
    if ended.code:
        told = [line.strip(" │╭╰─╮╯") for line in ended.tail]
        raise FlowError(f"{prefect_file.name} could not be deployed: {' '.join(filter(None, told[-6:]))}")
    names = []
    for deployment in client.read_deployments():
        names.append(f"{client.read_flow(deployment.flow_id).name}/{deployment.name}")
        for schedule in deployment.schedules:
            if not schedule.active and (deployment.id, schedule.id) in running:
                client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    return sorted(names)


def crash_lost_runs(client: SyncPrefectClient, worker: str) -> int:
    """Tells the server that the runs of a worker which is gone are gone, and frees their slots; how many they were."""
    under_way = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    runs = [
        run
        for run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=under_way)),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        )
        if run.labels.get("prefect.worker.name") == worker
    ]
    for run in runs:
        message = "Its worker was ended. Run it again; finished stages stay."
        client.set_flow_run_state(run.id, Crashed(message=message))
    return len(runs)


def _slots(number: int) -> str:
    return "1 slot" if number == 1 else f"{number} slots"
