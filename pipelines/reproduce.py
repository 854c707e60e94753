"""The flow `reproduce`: a workspace in, every stage of its graph up to date, or failed with its last lines, out.

What `dvc repro` does one after another is done here side by side where the graph allows it; artefacts and `dvc.lock`
are the same bytes.
"""

import os
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any
from uuid import UUID

from prefect import allow_failure, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed

from pipelines import showing
from pipelines.aftermath import sign, tidy_up
from pipelines.errors import FlowError, told_in_one_line
from pipelines.gpus import visible_gpus
from pipelines.graph import Stage, read_graph
from pipelines.lockfile import locked_stages, order_new_stages
from pipelines.settings import about
from pipelines.stage_task import Surroundings, run_stage
from pipelines.walk import BROKEN, Outcome, Walk
from pipelines.watch import stoppable, watching
from pipelines.workspace import alone, find_workspace
from pipelines.worktree import revision, save_experiment

LOCK = "dvc.lock"


def _run_name() -> str:
    given = flow_run.parameters
    wanted = given.get("targets") or []
    try:
        words = ", ".join(wanted) if wanted else about(find_workspace(given.get("workspace")))
    except FlowError:
        words = "no workspace"
    extra = [str(given[key]) for key in ("rev", "experiment") if given.get(key)]
    return " · ".join(["reproduce", words, *extra])


@flow(name="reproduce", flow_run_name=_run_name, persist_result=False)
@told_in_one_line
def reproduce(
    targets: list[str] | None = None,
    force: bool = False,
    rev: str | None = None,
    experiment: str | None = None,
    workspace: str | None = None,
    cores: int | None = None,
    gpus: list[str] | None = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Brings the stages of a DVC workspace up to date, independent ones at the same time.

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
    log, home = get_run_logger(), find_workspace(workspace)
    with revision(home, rev) as place, alone(place, str(flow_run.name)) as fresh:
        if fresh:
            tidy_up(place, run_id(), log)
        sign(place, run_id())
        stages = read_graph(place, targets, force=force)
        stale = sum(stage.stale for stage in stages.values())
        log.info("%d stages, %d of them stale, in %s", len(stages), stale, place)
        there = visible_gpus() if gpus is None else gpus
        if there and get_current_settings().api.url is None:
            _limit_of_own_server(gpu_limit, len(there))
        walk = Walk(stages, cores=_core_numbers(cores), gpus=there)
        locked = locked_stages(place / LOCK)
        # Whatever still runs when this flow ends early is ended with it.
        with stoppable() as stop, watching(run_id(), stop, log):
            states = _walk(walk, Surroundings(place, force, gpu_limit, timeout_hours, stop))
        order_new_stages(place / LOCK, locked, list(stages))
        showing.show(place, stages, states)
        if experiment and not _broken(walk.outcomes):
            save_experiment(place, experiment)
    return _state(walk.outcomes, stages)


def _limit_of_own_server(name: str, gpus: int) -> None:
    """A server that starts and ends with the flow has no limits but those that the flow makes."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, gpus)


def _walk(walk: Walk, around: Surroundings) -> dict[str, State[Any]]:
    futures: dict[str, PrefectFuture[Any]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    while not walk.done:
        for start in walk.starts():
            address = start.stage.address
            upstream: Any = [allow_failure(futures[one]) for one in start.stage.upstream if one in futures]
            futures[address] = run_stage.submit(address, start, around, wait_for=upstream)  # pyright: ignore[reportCallIssue]
            futures[address].add_done_callback(lambda _, address=address: ended.put(address))
        address = ended.get()
        futures[address].wait()
        walk.ended(address, _outcome(futures[address].state))
    return {address: future.state for address, future in futures.items()}


def _outcome(state: State[Any]) -> Outcome:
    if state.name in set(Outcome):
        return Outcome(state.name)
    return Outcome.CANCELLED if state.is_cancelled() else Outcome.COMPLETED if state.is_completed() else Outcome.FAILED


def _state(outcomes: Mapping[str, Outcome], stages: Mapping[str, Stage]) -> State[Any]:
    """The end of the whole run, told in one line; the outcomes are its data."""
    counts = {outcome: sum(one is outcome for one in outcomes.values()) for outcome in Outcome}
    told = f"{len(stages)} stages: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    failed = [address for address, outcome in outcomes.items() if outcome is Outcome.FAILED]
    data = {address: str(outcome) for address, outcome in outcomes.items()}
    if failed:
        return Failed(message=f"{', '.join(failed)} failed; {told}. Run again to go on from there.", data=data)
    if _broken(outcomes):
        return Cancelled(message=f"{told}. Run again to go on from there.", data=data)
    return Completed(message=told, data=data)


def _broken(outcomes: Mapping[str, Outcome]) -> bool:
    return any(outcome in BROKEN for outcome in outcomes.values())


def _core_numbers(count: int | None) -> list[int]:
    """The numbers of the cores to spread over; more than there are means that some are shared."""
    there = sorted(os.sched_getaffinity(0))
    if count is not None and count < 1:
        raise FlowError(f"cores is {count}; it is a number from 1")
    return there if count is None else [there[number % len(there)] for number in range(count)]


def run_id() -> UUID:
    """The id of the flow run that this is called in."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("called outside of a flow")
    return context.flow_run.id
