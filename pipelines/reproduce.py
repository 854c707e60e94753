"""Bring the stages of a workspace up to date, independent ones at the same time.

What `dvc repro` does one after another the flow `reproduce` does side by side where the graph allows it; artefacts and
`dvc.lock` are the same bytes. A stage that fails ends with its last lines in the message.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any
from uuid import UUID

import typer
from prefect import allow_failure, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed

from pipelines import FlowError, artifacts
from pipelines.cleanup import clean_up, fail_in_one_line, stop_event, tag_run, watch_run
from pipelines.graph import UNSUCCESSFUL, Outcome, Scheduler, read_graph
from pipelines.locks import lock_workspace, visible_gpus
from pipelines.repository import checkout_revision, save_experiment
from pipelines.stage_task import RunContext, run_stage
from pipelines.workspace import LOCK, describe_workspace, find_workspace, order_new_stages, read_locked_stages

Targets = Annotated[list[str] | None, typer.Argument()]
Gpus = Annotated[list[str] | None, typer.Option("--gpu")]


def name_run() -> str:
    """Return the name of the flow run that this is called in: flow, what it works on, revision, experiment."""
    parameters = flow_run.parameters
    try:
        subject = describe_workspace(find_workspace(parameters.get("workspace")))
    except FlowError:
        subject = "no workspace"
    name = str(flow_run.flow_name)
    if name == "reproduce" and parameters.get("targets"):
        subject = ", ".join(parameters["targets"])
    grid = [" × ".join(parameters["grid"])] if parameters.get("grid") else []
    extra = [str(parameters[key]) for key in ("rev", "experiment") if name == "reproduce" and parameters.get(key)]
    return " · ".join([name, *grid, subject, *extra])


@flow(name="reproduce", flow_run_name=name_run, persist_result=False)
@fail_in_one_line
def reproduce(
    targets: Targets = None,
    force: bool = False,
    rev: str | None = None,
    experiment: str | None = None,
    workspace: str | None = None,
    cores: int | None = None,
    gpus: Gpus = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Bring the stages of a DVC workspace up to date, independent ones at the same time.

    Args:
        targets: Stages, groups of stages or outputs; they and what they need. None: all.
        force: Run stages that are up to date, too.
        rev: A git revision, reproduced in a work tree of its own beside the workspace. None: the workspace as it is.
        experiment: A name under which the outcome is saved as a DVC experiment.
        workspace: The folder of dvc.yaml. None: PIPELINES_WORKSPACE, or the working directory.
        cores: How many cores all running stages share. None: those that this process may use.
        gpus: The GPUs for stages whose meta says `gpu: true`, one each. None: those that are there.
        gpu_limit: The Prefect concurrency limit that counts GPUs over all hosts.
        timeout_hours: After this long a stage is ended, where its own meta names no timeout.
    """
    log, available = get_run_logger(), sorted(os.sched_getaffinity(0))
    if cores is not None and cores < 1:
        raise FlowError(f"cores is {cores}; it is a number from 1")
    with checkout_revision(find_workspace(workspace), rev) as folder, own_workspace(folder, str(flow_run.name)) as run:
        stages = read_graph(folder, targets, force=force)
        stale = sum(stage.stale for stage in stages.values())
        log.info("%d stages, %d of them stale, in %s", len(stages), stale, folder)
        gpu_names = visible_gpus() if gpus is None else gpus
        if gpu_names and get_current_settings().api.url is None:
            # A server that starts and ends with the flow has no limits but those that the flow makes.
            with get_client(sync_client=True) as client:
                client.upsert_global_concurrency_limit_by_name(gpu_limit, len(gpu_names))
        # More cores than there are mean that some are shared.
        numbers = [available[number % len(available)] for number in range(cores or len(available))]
        scheduler = Scheduler(stages, cores=numbers, gpus=gpu_names)
        locked = read_locked_stages(folder / LOCK)
        # Whatever still runs when this flow ends early is ended with it.
        with stop_event() as stop, watch_run(run, stop, log):
            states = _run_stages(scheduler, RunContext(folder, force, gpu_limit, timeout_hours, stop))
        order_new_stages(folder / LOCK, locked, list(stages))
        artifacts.publish_run(folder, stages, states)
        state = _summarize(scheduler.outcomes)
        if experiment and state.is_completed():
            save_experiment(folder, experiment)
    return state


@contextmanager
def own_workspace(folder: Path, name: str) -> Iterator[UUID]:
    """Hold the workspace for this flow run, clean up behind dead runs and tag this one; yield its id."""
    run = UUID(flow_run.id)
    with lock_workspace(folder, name) as is_outermost:
        if is_outermost:
            clean_up(folder, run, get_run_logger())
        tag_run(folder, run)
        yield run


def _run_stages(scheduler: Scheduler, context: RunContext) -> dict[str, State[Any]]:
    futures: dict[str, PrefectFuture[Any]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    while not scheduler.done:
        for start in scheduler.start_ready():
            address = start.stage.address
            upstream: Any = [allow_failure(futures[one]) for one in start.stage.upstream if one in futures]
            futures[address] = run_stage.submit(address, start, context, wait_for=upstream)  # pyright: ignore[reportCallIssue]
            futures[address].add_done_callback(lambda _, address=address: ended.put(address))
        address = ended.get()
        futures[address].wait()
        name = futures[address].state.name
        scheduler.finish(address, Outcome(name) if name in set(Outcome) else Outcome.FAILED)
    return {address: future.state for address, future in futures.items()}


def _summarize(outcomes: dict[str, Outcome]) -> State[Any]:
    """Return the final state of the run: one line; the outcomes are its data."""
    counts, again = Counter(outcomes.values()), "Run again to go on from there."
    summary = f"{len(outcomes)} stages: " + ", ".join(f"{counts[end]} {end}" for end in Outcome if counts[end])
    data = {address: str(outcome) for address, outcome in outcomes.items()}
    if failed := [address for address, outcome in outcomes.items() if outcome is Outcome.FAILED]:
        return Failed(message=f"{', '.join(failed)} failed; {summary}. {again}", data=data)
    if counts.keys() & UNSUCCESSFUL:
        return Cancelled(message=f"{summary}. {again}", data=data)
    return Completed(message=summary, data=data)
