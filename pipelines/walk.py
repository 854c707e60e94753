"""Which stages may start now: order, core budget and GPUs, without Prefect and without processes.

A stage starts when all that it stands on has ended. One that is not stale, on upstream stages that were all up to date,
is up to date itself and needs no process; one behind a failure is skipped; the others run where cores and a GPU are
free.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipelines.graph import Cores, Stage


class Outcome(StrEnum):
    """How a stage ended; the names that a person sees."""

    CACHED = "Cached"  # up to date, nothing was done
    RUN_CACHE = "RunCache"  # restored: DVC remembers a run with the same inputs
    COMPLETED = "Completed"
    FAILED = "Failed"
    SKIPPED = "Skipped"  # something upstream failed
    CANCELLED = "Cancelled"


BROKEN = {Outcome.FAILED, Outcome.SKIPPED, Outcome.CANCELLED}


@dataclass(frozen=True)
class Start:
    """A stage that starts now: with cores and GPU to run, or with a word on why it does not run."""

    stage: Stage
    outcome: Outcome | None = None  # known beforehand: CACHED or SKIPPED; None: it runs
    reason: str = ""
    cores: tuple[int, ...] = ()
    gpu: str | None = None


class Walk:
    """The state of one walk over a graph.

    `cores`: the numbers of the cores to spread over. `gpus`: the names of the GPUs, each for one stage at a time; where
    there are none, stages that would use one share the cores as any other.
    """

    def __init__(self, stages: Mapping[str, Stage], *, cores: Sequence[int], gpus: Sequence[str] = ()) -> None:
        if not cores:
            raise ValueError("a walk needs a core")
        self.outcomes: dict[str, Outcome] = {}
        self._stages = dict(stages)
        self._waiting = list(stages)
        self._running: dict[str, Start] = {}
        self._budget = len(cores)
        self._cores, self._gpus = list(cores), list(gpus)
        self._has_gpus = bool(gpus)

    @property
    def done(self) -> bool:
        """Whether every stage has ended."""
        return not self._waiting and not self._running

    def starts(self) -> Iterator[Start]:
        """The stages that start now; their cores and GPUs are taken until `ended` is called for them."""
        ready = [self._stages[address] for address in self._waiting if self._is_ready(address)]
        runs: list[Stage] = []
        for stage in ready:
            known = self._known(stage)
            if known is None:
                runs.append(stage)
            else:
                yield self._begin(known)
        while runs:
            stage = runs.pop(0)
            gpu = self._has_gpus and stage.needs.gpu
            count = self._claim(stage.needs.cores, sharing=1 + len(runs))
            if count <= len(self._cores) and not (gpu and not self._gpus):
                cores = tuple(self._cores.pop(0) for _ in range(count))
                yield self._begin(Start(stage, cores=cores, gpu=self._gpus.pop(0) if gpu else None))

    def ended(self, address: str, outcome: Outcome) -> None:
        """A started stage has ended: what it held is free."""
        start = self._running.pop(address)
        self.outcomes[address] = outcome
        self._cores = sorted([*self._cores, *start.cores])
        self._gpus += [start.gpu] if start.gpu is not None else []

    def _begin(self, start: Start) -> Start:
        self._waiting.remove(start.stage.address)
        self._running[start.stage.address] = start
        return start

    def _is_ready(self, address: str) -> bool:
        return all(one in self.outcomes for one in self._stages[address].upstream if one in self._stages)

    def _known(self, stage: Stage) -> Start | None:
        upstream = {one: self.outcomes[one] for one in stage.upstream if one in self._stages}
        broken = [one for one, outcome in upstream.items() if outcome in BROKEN]
        if broken:
            return Start(stage, Outcome.SKIPPED, f"not run: {self._cause(broken[0])}")
        if not stage.stale and all(outcome is Outcome.CACHED for outcome in upstream.values()):
            return Start(stage, Outcome.CACHED, "up to date")
        return None

    def _cause(self, address: str) -> str:
        """The stage whose own end stands behind a skipped one."""
        while self.outcomes[address] is Outcome.SKIPPED:
            address = next(one for one in self._stages[address].upstream if self.outcomes.get(one) in BROKEN)
        return f"{address} {'was cancelled' if self.outcomes[address] is Outcome.CANCELLED else 'failed'}"

    def _claim(self, wanted: Cores, *, sharing: int) -> int:
        if wanted == "all":
            return self._budget
        if wanted is None:
            return max(1, len(self._cores) // sharing)
        return min(wanted, self._budget)
