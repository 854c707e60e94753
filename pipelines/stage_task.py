"""One stage of the graph as a Prefect task: `dvc repro -s` under a supervisor, its lines in the task's log."""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from pipelines import gpus, supervised
from pipelines.errors import Busy, FlowError, told_in_one_line
from pipelines.progress import reporting_progress
from pipelines.walk import Outcome, Start
from pipelines.words import Words, is_hint
from pipelines.workspace import mend_dvc_lock, stage_environment

LEASE_SECONDS = 60.0  # a slot whose holder was killed is free after this
SLOT_SECONDS = 10.0  # between two looks at whether the run still wants the slot
LAST_LINES = 20
GRACE_SECONDS = 3.0


@dataclass(frozen=True)
class Surroundings:
    """What all stages of one run share."""

    workspace: Path
    force: bool
    gpu_limit: str
    timeout: float | None  # hours, for stages whose meta names none
    stop: threading.Event


def _was_busy(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, Busy)


@task(
    name="stage",
    task_run_name="{stage}",
    retries=3,
    retry_delay_seconds=2,
    retry_condition_fn=_was_busy,
    persist_result=False,
    cache_policy=NO_CACHE,
)
@told_in_one_line
def run_stage(stage: str, start: Start, around: Surroundings) -> State[Any]:
    """Runs one stage, or shows what is known of it; the state's name says how it ended.

    States: Cached (up to date, no process), RunCache (restored by DVC), Completed, Failed (the message ends with the
        last lines), Skipped (behind a failure), Cancelled.
    """
    if start.outcome is Outcome.CACHED:
        return Completed(name=Outcome.CACHED, message=f"{stage}: {start.reason}")
    if start.outcome is Outcome.SKIPPED:
        return Cancelled(name=Outcome.SKIPPED, message=f"{stage}: {start.reason}")
    with ExitStack() as held:
        if start.gpu is not None:
            held.enter_context(_a_gpu(start.gpu, around))
        return _run(stage, start, around)


def _run(stage: str, start: Start, around: Surroundings) -> State[Any]:
    log, words = get_run_logger(), Words()
    last: deque[str] = deque(maxlen=LAST_LINES)

    def hear(line: str) -> None:
        words.hear(line)
        if line.strip() and not is_hint(line):
            last.append(line)
            log.info("%s", line)

    if mended := mend_dvc_lock(around.workspace):
        log.warning("%s", mended)
    force = ["--force"] if around.force else []
    hours = start.stage.needs.timeout or around.timeout
    environment = stage_environment() if start.gpu is None else stage_environment({"CUDA_VISIBLE_DEVICES": start.gpu})
    log.info("%s: on %s", stage, _means(start))
    with reporting_progress(around.workspace, stage, log):
        ended = supervised.run(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *force, stage],
            cwd=around.workspace,
            env=environment,
            on_line=hear,
            timeout=None if hours is None else hours * 3600,
            grace=GRACE_SECONDS,
            cores=set(start.cores) & os.sched_getaffinity(0) or None,
            stop=around.stop,
        )
    told = "\n".join(last)
    if ended.reason == "stopped":
        return Cancelled(message=f"{stage}: ended with the run; what it had finished is kept")
    if ended.reason == "timeout":
        return Failed(message=f"{stage}: ended after {hours:g} h, its limit (meta.timeout or timeout_hours)\n{told}")
    if ended.code != 0:
        if words.busy:
            raise Busy(f"Busy: {stage} could not get DVC's lock\n{told}")
        return Failed(message=f"{stage}: {ended.words}\n{told}")
    return Completed(name=words.outcome, message=f"{stage}: {words.outcome} in {ended.seconds:.1f} s")


@contextmanager
def _a_gpu(gpu: str, around: Surroundings) -> Iterator[None]:
    """This host's GPU first, then a slot of the limit that all hosts share."""

    def waiting() -> None:
        if around.stop.is_set():
            raise FlowError(f"the run ended while GPU {gpu} was held by another")

    with gpus.holding(gpu, waiting), ExitStack() as held:
        while True:
            try:
                held.enter_context(_slot(around.gpu_limit))
                break
            except TimeoutError:
                waiting()
        yield


@contextmanager
def _slot(limit: str) -> Iterator[None]:
    """One slot of the limit; TimeoutError where none was free for a while, FlowError where there is no such limit."""
    with ExitStack() as held:
        try:
            # A server that does not answer for a while must not end a stage that has run for hours.
            held.enter_context(
                concurrency(
                    limit,
                    occupy=1,
                    timeout_seconds=SLOT_SECONDS,
                    lease_duration=LEASE_SECONDS,
                    strict=True,
                    raise_on_lease_renewal_failure=False,
                )
            )
        except ConcurrencySlotAcquisitionError as error:
            cure = f"prefect global-concurrency-limit create {limit} --limit <GPUs of all hosts>"
            raise FlowError(f"no slot of the limit {limit!r} to be had ({error}); if it is not there: {cure}") from None
        yield


def _means(start: Start) -> str:
    cores = f"{len(start.cores)} core{'s' if len(start.cores) != 1 else ''}"
    return cores if start.gpu is None else f"{cores} and GPU {start.gpu}"
