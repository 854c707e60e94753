"""Set up a running Prefect server: work pool, GPU slots, deployments, what to do about dead runs.

Doing it twice changes nothing, and what a person has set stays.
"""

import sys
from pathlib import Path

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from pipelines.errors import FlowError
from pipelines.program_group import ProgramGroup

POOL = "local"
GPU_LIMIT = "gpu"
DEAD_RUN = Path(__file__).with_name("deployments") / "automations" / "dead-run.yaml"


def ensure_pool(client: SyncPrefectClient) -> None:
    """Make the process pool where it is missing."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        description = "Processes of one host that share one workspace."
        pool = WorkPoolCreate(name=POOL, type="process", base_job_template=template, description=description)
        client.create_work_pool(pool)
    if pool.type != "process":
        raise FlowError(
            f"the work pool {POOL!r} is of type {pool.type}, not process; delete it, or use another PREFECT_HOME"
        )


def ensure_gpu_limit(client: SyncPrefectClient, gpus: int) -> str:
    """Make the limit where it is missing, one slot a GPU; return a line on it."""

    def count(number: int, noun: str) -> str:
        return f"{number or 'no'} {noun}{'s' if number > 1 else ''}"

    wanted = max(gpus, 1)
    note = f"{count(gpus, 'GPU')} found"
    try:
        slots = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=wanted))
        return f"limit {GPU_LIMIT!r}: {count(wanted, 'slot')} ({note})"
    if slots != wanted:
        note += f"; change it with: prefect gcl update {GPU_LIMIT} --limit {wanted}"
    return f"limit {GPU_LIMIT!r}: {count(slots, 'slot')}, as it was ({note})"


def ensure_dead_run_automation(client: SyncPrefectClient) -> None:
    """Make the automation that crashes runs without a heartbeat, where none of its name is there."""
    automation = AutomationCore.model_validate(yaml.safe_load(DEAD_RUN.read_text(encoding="utf-8")))
    if not client.read_automations_by_name(automation.name):
        client.create_automation(automation)


def deploy(client: SyncPrefectClient, programs: ProgramGroup, prefect_file: Path) -> list[str]:
    """Deploy `prefect_file` to the server and return the names. A schedule that was switched on stays on."""
    active = {
        (deployment.id, schedule.id)
        for deployment in client.read_deployments()
        for schedule in deployment.schedules
        if schedule.active
    }
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file)]
    result = programs.run(command)
    if result.reason == "stopped":
        return []
    if result.code:
        lines = [line.strip(" │╭╰─╮╯") for line in result.tail]
        raise FlowError(f"{prefect_file.name} could not be deployed: {' '.join(filter(None, lines[-6:]))}")
    names = []
    for deployment in client.read_deployments():
        names.append(f"{client.read_flow(deployment.flow_id).name}/{deployment.name}")
        for schedule in deployment.schedules:
            if not schedule.active and (deployment.id, schedule.id) in active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=True)
    return sorted(names)
