"""Run one stage of the graph as a Prefect task: `dvc repro -s` under a supervisor, its lines in the task's log."""

import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed

from pipelines import FlowError, locks, process_tree
from pipelines.artifacts import report_progress
from pipelines.cleanup import fail_in_one_line
from pipelines.graph import Outcome, Start
from pipelines.workspace import stage_environment

LEASE_SECONDS = 60.0  # a slot whose holder was killed is free after this
SLOT_SECONDS = 10.0  # between two looks at whether the run still wants the slot
LAST_LINES = 20
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


class DvcBusyError(Exception):
    """DVC's own lock was held for too long; the stage may be tried again."""


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


@dataclass(frozen=True)
class RunContext:
    """What all stages of one run share."""

    workspace: Path
    force: bool
    gpu_limit: str
    timeout_hours: float | None  # for stages whose meta names none
    stop: threading.Event


@task(
    name="stage",
    task_run_name="{stage}",
    retries=3,
    retry_delay_seconds=2,
    retry_condition_fn=lambda _task, _run, state: isinstance(state.data, DvcBusyError),
    persist_result=False,
    cache_policy=NO_CACHE,
)
@fail_in_one_line
def run_stage(stage: str, start: Start, context: RunContext) -> State[Any]:
    """Run one stage, or show what is known of it; the state's name says how it ended.

    States: Cached (up to date, no process), RunCache (restored by DVC), Completed, Failed (the message ends with the
        last lines), Skipped (behind a failure), Cancelled.
    """
    if start.outcome is Outcome.CACHED:
        return Completed(name=Outcome.CACHED, message=f"{stage}: {start.reason}")
    if start.outcome is Outcome.SKIPPED:
        return Cancelled(name=Outcome.SKIPPED, message=f"{stage}: {start.reason}")
    with nullcontext() if start.gpu is None else _hold_gpu_and_slot(start.gpu, context):
        return _run_dvc(stage, start, context)


def _run_dvc(stage: str, start: Start, context: RunContext) -> State[Any]:
    log, output = get_run_logger(), DvcOutput()
    last: deque[str] = deque(maxlen=LAST_LINES)

    def read_line(line: str) -> None:
        output.add(line)
        if line.strip() and not line.startswith(HINTS):
            last.append(line)
            log.info("%s", line)

    if repaired := locks.repair_rwlock(context.workspace):
        log.warning("%s", repaired)
    force = ["--force"] if context.force else []
    hours = start.stage.needs.timeout or context.timeout_hours
    cores = f"{len(start.cores)} core{'' if len(start.cores) == 1 else 's'}"
    log.info("%s: on %s", stage, cores if start.gpu is None else f"{cores} and GPU {start.gpu}")
    with report_progress(context.workspace, stage, log):
        result = process_tree.run_command(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *force, stage],
            cwd=context.workspace,
            env=stage_environment({} if start.gpu is None else {"CUDA_VISIBLE_DEVICES": start.gpu}),
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
        raise DvcBusyError(f"Busy: {stage} could not get DVC's lock\n{lines}")
    if result.code:
        return Failed(message=f"{stage}: {result}\n{lines}")
    return Completed(name=output.outcome, message=f"{stage}: {output.outcome} in {result.seconds:.1f} s")


@contextmanager
def _hold_gpu_and_slot(gpu: str, context: RunContext) -> Iterator[None]:
    """Hold this host's GPU, then a slot of the limit that all hosts share; FlowError where there is no such limit."""
    limit = context.gpu_limit

    def check_stop() -> None:
        if context.stop.is_set():
            raise FlowError(f"the run ended while GPU {gpu} was held by another")

    with locks.hold_gpu(gpu, check_stop), ExitStack() as stack:
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
