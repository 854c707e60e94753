"""Measures sides in turn, A B A B, each in a process of its own. In: sides. Out: their rounds."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks.harness.process import Process, started
from benchmarks.harness.rounds import Rounds, Side, SideError

T = TypeVar("T")


@dataclass
class Bench:
    """What a measure needs: small or full sizes, a scratch folder that is removed after it, and the taking of turns."""

    quick: bool
    scratch: Path
    threads: int = 1
    patience: float = 1800.0
    taken: list[Rounds] = field(default_factory=list)

    def alternate(self, sides: dict[str, Side], rounds: int = 3) -> dict[str, Rounds]:
        """Sets every side up, then runs round after round of all of them in turn.

        A side that fails or dies keeps its fault (`Rounds.fault`) and leaves the turn; the others go on.
        """
        results = {name: Rounds(name, side.options) for name, side in sides.items()}
        self.taken += results.values()
        with contextlib.ExitStack() as stack:
            processes: dict[str, Process] = {}
            for name, side in sides.items():
                try:
                    processes[name] = stack.enter_context(
                        started(name, side, self.scratch, self.threads, self.patience)
                    )
                except SideError as fault:
                    results[name].fault = str(fault)
            for _ in range(rounds):
                for name, process in list(processes.items()):
                    try:
                        process.round(results[name])
                    except SideError as fault:
                        results[name].fault = str(fault)
                        del processes[name]
        return results

    def pick(self, full: T, quick: T) -> T:
        """The size of this run."""
        return quick if self.quick else full
