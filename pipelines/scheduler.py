"""Decide which stages may start now by order, cores and GPUs, without Prefect and without processes.

A stage starts when all stages upstream of it have ended. One that is not stale and whose upstream stages were all up to
date is up to date itself and needs no process; one behind a failure is skipped; the others run where cores and a GPU
are free.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipelines.graph import Stage


class Outcome(StrEnum):
    """How a stage ended; the names that a person sees."""

    CACHED = "Cached"  # up to date, nothing was done
    RUN_CACHE = "RunCache"  # restored: DVC remembers a run with the same inputs
    COMPLETED = "Completed"
    FAILED = "Failed"
    SKIPPED = "Skipped"  # something upstream failed
    CANCELLED = "Cancelled"


UNSUCCESSFUL = {Outcome.FAILED, Outcome.SKIPPED, Outcome.CANCELLED}


@dataclass(frozen=True)
class Start:
    """A stage that starts now: with cores and GPU to run, or with the reason why it does not run."""

    stage: Stage
    outcome: Outcome | None = None  # known beforehand: CACHED or SKIPPED; None: it runs
    reason: str = ""
    cores: tuple[int, ...] = ()
    gpu: str | None = None


class Scheduler:
    """The state of one run over a graph; `outcomes` are those of the stages that have ended.

    `cores`: the numbers of the cores to spread over. `gpus`: the names of the GPUs, each for one stage at a time; where
    there are none, stages that would use one share the cores as any other.
    """

    def __init__(self, stages: Mapping[str, Stage], *, cores: Sequence[int], gpus: Sequence[str] = ()) -> None:
        if not cores:
            raise ValueError("a scheduler needs at least one core")
        self.outcomes: dict[str, Outcome] = {}
        self._stages, self._waiting = dict(stages), list(stages)
        self._running: dict[str, Start] = {}
        self._budget, self._has_gpus = len(cores), bool(gpus)
        self._cores, self._gpus = list(cores), list(gpus)

    @property
    def done(self) -> bool:
        """Whether every stage has ended."""
        return not self._waiting and not self._running

    def start_ready(self) -> Iterator[Start]:
        """Yield the stages that start now; their cores and GPUs are taken until `finish` is called for them."""
        runs: list[Stage] = []
        for stage in [self._stages[address] for address in self._waiting]:
            upstream = [address for address in stage.upstream if address in self._stages]
            if not all(address in self.outcomes for address in upstream):
                continue
            unsuccessful = [address for address in upstream if self.outcomes[address] in UNSUCCESSFUL]
            if unsuccessful:
                yield self._begin(Start(stage, Outcome.SKIPPED, f"not run: {self._cause(unsuccessful[0])}"))
            elif not stage.stale and all(self.outcomes[address] is Outcome.CACHED for address in upstream):
                yield self._begin(Start(stage, Outcome.CACHED, "up to date"))
            else:
                runs.append(stage)
        for place, stage in enumerate(runs):
            gpu, wanted = self._has_gpus and stage.needs.gpu, stage.needs.cores
            if wanted is None:
                wanted = max(1, len(self._cores) // (len(runs) - place))
            count = self._budget if wanted == "all" else min(wanted, self._budget)
            if count <= len(self._cores) and not (gpu and not self._gpus):
                cores, self._cores = tuple(self._cores[:count]), self._cores[count:]
                yield self._begin(Start(stage, cores=cores, gpu=self._gpus.pop(0) if gpu else None))

    def finish(self, address: str, outcome: Outcome) -> None:
        """Note that a started stage has ended, and free what it held."""
        start = self._running.pop(address)
        self.outcomes[address] = outcome
        self._cores = sorted([*self._cores, *start.cores])
        self._gpus += [start.gpu] if start.gpu is not None else []

    def _begin(self, start: Start) -> Start:
        self._waiting.remove(start.stage.address)
        self._running[start.stage.address] = start
        return start

    def _cause(self, address: str) -> str:
        """Name the stage whose own end stands behind a skipped one."""
        while self.outcomes[address] is Outcome.SKIPPED:
            upstream = self._stages[address].upstream
            address = next(stage for stage in upstream if self.outcomes.get(stage) in UNSUCCESSFUL)
        return f"{address} {'was cancelled' if self.outcomes[address] is Outcome.CANCELLED else 'failed'}"
