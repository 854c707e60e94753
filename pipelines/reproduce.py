"""Bring the stages of a workspace up to date, independent ones at the same time.

What `dvc repro` does one after another the flow `reproduce` does side by side where the graph allows it; artefacts and
`dvc.lock` are the same bytes. Each stage is a Prefect task: `dvc repro -s` under a supervisor, its lines in the task's
log; one that fails ends with its last lines in the message.
"""

import os
import re
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import typer
from prefect import allow_failure, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Completed, Failed

from pipelines import FlowError, artifacts, assets, process_tree
from pipelines.cleanup import clean_up, fail_in_one_line, is_ending, stop_event, tag_run, watch_run
from pipelines.documents import one_line
from pipelines.locks import hold_gpu, lock_workspace, repair_rwlock, visible_gpus
from pipelines.progress import report_progress
from pipelines.repository import check_experiment_name, checkout_revision, save_experiment
from pipelines.workspace import (
    LOCK,
    Outcome,
    Scheduler,
    Start,
    describe_workspace,
    find_workspace,
    list_changed_settings,
    order_new_stages,
    read_graph,
    read_locked_stages,
    stage_environment,
)

LEASE_SECONDS = 60.0  # a slot whose holder was killed is free after this
SLOT_SECONDS = 10.0  # between two looks at whether the run still wants the slot
BUSY_RETRIES, RETRY_DELAYS = 3, [2.0, 5.0, 15.0, 60.0]  # seconds; the last one again and again
LAST_LINES = 20
CHANGES_IN_NAME = 2  # all of them are in the description of the table of stages
GRACE_SECONDS = 3.0
# DVC's own lines only: a stage may print anything, and one that runs DVC itself prints the same words.
STARTED = re.compile(r"Running stage '.+':$")
UNCHANGED = re.compile(r"(Stage )?'.+' didn't change, skipping$")
RESTORED = re.compile(r"Stage '.+' is cached - skipping run")
BUSY = re.compile(r"(\x1b\[\d+m)?ERROR.*(Unable to acquire lock|is busy, it is being blocked by|RWLock-file)")
# What DVC advises a person at a terminal to do next, and its lock file; a run's log would have it under every stage.
HINTS = (
    "To track the changes with git, run:",
    "\tgit add ",
    "To enable auto staging, run:",
    "\tdvc config core.autostage true",
    "Generating lock file 'dvc.lock'",
    "Updating lock file 'dvc.lock'",
    "Use `dvc push` to send your updates to remote storage.",
)
Targets = Annotated[list[str] | None, typer.Argument()]
Gpus = Annotated[list[str] | None, typer.Option("--gpu")]


class RetryError(Exception):
    """The stage is to be tried again: DVC's own lock was held for too long, or its meta says so."""


class DvcOutput:
    """What the lines of one `dvc repro -s` say: the outcome if its command succeeds, and whether a lock was `busy`."""

    def __init__(self) -> None:
        self.outcome = Outcome.COMPLETED
        self.busy = self._started = False

    def add(self, line: str) -> None:
        """Read one line of DVC's, or of the stage's own."""
        self.busy |= BUSY.match(line) is not None
        self._started |= STARTED.match(line) is not None  # afterwards the lines are the stage's
        if not self._started and RESTORED.match(line):
            self.outcome = Outcome.RUN_CACHE
        elif not self._started and UNCHANGED.match(line) and self.outcome is Outcome.COMPLETED:
            self.outcome = Outcome.CACHED


class RunContext(NamedTuple):
    """What all stages of one run share."""

    workspace: Path
    force: bool
    gpu_limit: str
    timeout_hours: float | None  # for stages whose meta names none
    stop: threading.Event
    experiment: str = ""  # with a colon, before the names of its tasks


@task(
    name="stage",
    task_run_name="{context.experiment}{stage}",
    retries=BUSY_RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=lambda _task, _run, state: isinstance(state.data, RetryError),
    persist_result=False,
    cache_policy=NO_CACHE,
)
@fail_in_one_line
def run_stage(stage: str, start: Start, context: RunContext) -> State[Any]:
    """Run one stage, or show why it does not run; the state's name says how it ended.

    States: Cached (found up to date by DVC), RunCache (restored by it), Completed, Failed (the message ends with the
        last lines), Skipped (behind a failure), Cancelled.
    """
    if start.outcome is Outcome.SKIPPED:
        return Cancelled(name=Outcome.SKIPPED, message=f"{stage}: {start.reason}")
    try:
        with nullcontext() if start.gpu is None else _hold_gpu_and_slot(start.gpu, context):
            if not context.stop.is_set():
                return _run_dvc(stage, start, context)
    except FlowError:
        if not context.stop.is_set():
            raise
    return Cancelled(name=Outcome.SKIPPED, message=f"{stage}: not run: the run was ended")


def _run_dvc(stage: str, start: Start, context: RunContext) -> State[Any]:
    log, output = get_run_logger(), DvcOutput()
    last: deque[str] = deque(maxlen=LAST_LINES)

    def read_line(line: str) -> None:
        output.add(line)
        if line.strip() and not line.startswith(HINTS):
            last.append(line)
            log.info("%s", line)

    if repaired := repair_rwlock(context.workspace):
        log.warning("%s", repaired)
    before = assets.read_hashes(context.workspace)
    force = ["--force"] if context.force else []
    hours = start.stage.needs.timeout or context.timeout_hours
    cores = f"{len(start.cores)} core{'' if len(start.cores) == 1 else 's'}"
    log.info("%s: on %s", stage, cores if start.gpu is None else f"{cores} and GPU {start.gpu}")
    result = process_tree.run_command(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *force, stage],
        cwd=context.workspace,
        env=stage_environment(context.workspace, {} if start.gpu is None else {"CUDA_VISIBLE_DEVICES": start.gpu}),
        on_line=read_line,
        timeout=None if hours is None else hours * 3600,
        grace=GRACE_SECONDS,
        cores=set(start.cores) & os.sched_getaffinity(0) or None,
        stop=context.stop,
    )
    lines = "\n".join(last)
    if result.reason == "stopped":
        return Cancelled(message=f"{stage}: ended with the run; what it had finished is kept")
    if result.reason == "timeout":
        return Failed(message=f"{stage}: ended after {hours:g} h, its limit (meta.timeout or timeout_hours)\n{lines}")
    if result.code and output.busy:
        raise RetryError(f"Busy: {stage} could not get DVC's lock\n{lines}")
    if result.code and (number := task_run.run_count) <= start.stage.needs.retries:
        raise RetryError(f"{stage}: {result}; retry {number} of {start.stage.needs.retries} (meta.retries)\n{lines}")
    if result.code:
        return Failed(message=f"{stage}: {result}\n{lines}")
    if output.outcome is Outcome.COMPLETED:
        assets.emit_outputs(context.workspace, stage, before)
    return Completed(name=output.outcome, message=f"{stage}: {output.outcome} in {result.seconds:.1f} s")


@contextmanager
def _hold_gpu_and_slot(gpu: str, context: RunContext) -> Iterator[None]:
    """Hold this host's GPU, then a slot of the limit that all hosts share; FlowError where there is no such limit."""
    limit = context.gpu_limit

    def check_stop() -> None:
        if context.stop.is_set():
            raise FlowError(f"the run ended while GPU {gpu} was held by another")

    with hold_gpu(gpu, check_stop) as warning, ExitStack() as stack:
        if warning:
            get_run_logger().warning("%s", warning)
        while True:
            # A server that does not answer for a while must not end a stage that has run for hours.
            slot = concurrency(
                limit, occupy=1, timeout_seconds=SLOT_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
                raise_on_lease_renewal_failure=False,
            )  # fmt: skip
            try:
                stack.enter_context(slot)
                break
            except TimeoutError:
                check_stop()
            except ConcurrencySlotAcquisitionError as error:
                cure = f"prefect global-concurrency-limit create {limit} --limit <GPUs of all hosts>"
                raise FlowError(f"no slot of the limit {limit!r} is free ({error}); if there is none: {cure}") from None
        yield


def name_run() -> str:
    """Return the name of the flow run that this is called in: flow, why it runs, revision, experiment.

    Why: the settings that are varied or were changed, else the targets, else what the workspace works on.
    """
    parameters, name, changes = flow_run.parameters, str(flow_run.flow_name), list[str]()
    try:
        workspace = find_workspace(parameters.get("workspace"))
        subject = describe_workspace(workspace)
        if not parameters.get("rev"):
            changes = list_changed_settings(workspace)
    except FlowError:
        subject = "no workspace"
    if name == "reproduce" and parameters.get("targets"):
        subject = ", ".join(parameters["targets"])
    if changes:
        more = f" and {len(changes) - CHANGES_IN_NAME} more" if len(changes) > CHANGES_IN_NAME else ""
        subject = ", ".join(changes[:CHANGES_IN_NAME]) + more
    if grid := parameters.get("grid"):
        subject = " × ".join(f"{path} {one_line(', '.join(map(str, values)), 40)}" for path, values in grid.items())
    extra = [str(parameters[key]) for key in ("rev", "experiment") if name == "reproduce" and parameters.get(key)]
    return " · ".join([name, subject, *extra])


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
    if experiment:
        check_experiment_name(experiment)
    with checkout_revision(find_workspace(workspace), rev) as folder, own_workspace(folder, str(flow_run.name)) as run:
        stages = read_graph(folder, targets, force=force)
        gpu_names = visible_gpus() if gpus is None else gpus
        if gpu_names and get_current_settings().api.url is None:
            # A server that starts and ends with the flow has no limits but those that the flow makes.
            with get_client(sync_client=True) as client:
                client.upsert_global_concurrency_limit_by_name(gpu_limit, len(gpu_names))
        # More cores than there are mean that some are shared.
        numbers = [available[number % len(available)] for number in range(cores or len(available))]
        scheduler = Scheduler(stages, cores=numbers, gpus=gpu_names)
        expected, stale = scheduler.list_expected(), sum(stage.stale for stage in stages.values())
        log.info("%d of %d stages stale, up to %d to run, in %s", stale, len(stages), len(expected), folder)
        locked, changes = read_locked_stages(folder / LOCK), list_changed_settings(folder)
        try:
            # Whatever still runs when this flow ends early is ended with it.
            with (
                stop_event() as stop,
                watch_run(run, stop, log),
                report_progress(folder, expected, scheduler.outcomes),
            ):
                label = f"{experiment}: " if experiment else ""
                _run_stages(scheduler, RunContext(folder, force, gpu_limit, timeout_hours, stop, label))
        finally:
            artifacts.publish_stages(stages, scheduler.outcomes, changes)
        order_new_stages(folder / LOCK, locked, list(stages))
        if not is_ending():  # somebody waits
            artifacts.publish_run(folder, scheduler.outcomes, run)
        state = _summarize(scheduler.outcomes)
        if experiment and state.is_completed():
            save_experiment(folder, experiment, targets, list(stages))
    return state


@contextmanager
def own_workspace(folder: Path, name: str) -> Iterator[UUID]:
    """Hold the workspace for this flow run, clean up behind dead runs and tag this one; yield its id."""
    run = UUID(flow_run.id)
    if is_ending():
        raise KeyboardInterrupt  # it came while Prefect was at work
    with lock_workspace(folder, name) as is_outermost:
        if is_outermost:
            clean_up(folder, run, get_run_logger())
        tag_run(folder, run)
        yield run


def _run_stages(scheduler: Scheduler, context: RunContext) -> None:
    """Run what the scheduler starts, as tasks; what is up to date has one line for all and no task."""
    current: list[str] = []
    futures: dict[str, PrefectFuture[Any]] = {}
    ended: SimpleQueue[str] = SimpleQueue()
    while not scheduler.done:
        for start in scheduler.start_ready():
            address = start.stage.address
            if start.outcome is Outcome.CACHED:
                scheduler.finish(address, Outcome.CACHED)
                current.append(address)
                ended.put(address)
                continue
            # Prefect allows upstream failures, but makes a task behind a cancelled or skipped one wait for ever.
            known = [futures[one] for one in start.stage.upstream if one in futures]
            upstream: Any = [allow_failure(future) for future in known if not future.state.is_cancelled()]
            attempt = run_stage.with_options(retries=BUSY_RETRIES + start.stage.needs.retries)
            futures[address] = attempt.submit(address, start, context, wait_for=upstream)  # pyright: ignore[reportCallIssue]
            futures[address].add_done_callback(lambda _, address=address: ended.put(address))
        address = ended.get()
        if address not in futures:
            continue
        futures[address].wait()
        name = futures[address].state.name
        scheduler.finish(address, Outcome(name) if name in set(Outcome) else Outcome.FAILED)
    if current:
        get_run_logger().info("%d up to date: %s", len(current), ", ".join(current))


def _summarize(outcomes: dict[str, Outcome]) -> State[Any]:
    """Return the final state of the run: one line; the outcomes are its data where it is completed.

    Of the data of any other state Prefect would make an error.
    """
    counts, again = Counter(outcomes.values()), "Run again to go on from there."
    summary = f"{len(outcomes)} stages: " + ", ".join(f"{counts[end]} {end}" for end in Outcome if counts[end])
    if failed := [address for address, outcome in outcomes.items() if outcome is Outcome.FAILED]:
        return Failed(message=f"{', '.join(failed)} failed; {summary}. {again}")
    if ended := [address for address, outcome in outcomes.items() if outcome is Outcome.CANCELLED]:
        return Cancelled(message=f"ended while {', '.join(ended)} ran; {summary}")
    if counts[Outcome.SKIPPED]:
        return Cancelled(message=f"ended while no stage ran; {summary}")
    data = {address: str(outcome) for address, outcome in outcomes.items()}
    return Completed(message=summary, data=data)
