"""What the rounds of one side took, and the arithmetic on them."""

import statistics
from dataclasses import dataclass, field
from typing import Any


class SideError(Exception):
    """A side died or failed, so that its figures do not exist; one line."""


@dataclass(frozen=True)
class Side:
    """What to measure: "module:function" with options that JSON can carry; a peer runs in the peers' environment."""

    entry: str
    options: dict[str, Any] = field(default_factory=dict)
    peer: bool = False


@dataclass
class Rounds:
    """The rounds of one side in their order: seconds, megabytes above the start, and the side's own facts.

    `peak_mb` is the kernel's peak of resident memory, mapped files included; `anon_mb` is sampled every 20 ms and
    leaves mapped files out.
    """

    side: str
    options: dict[str, Any] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    anon_mb: list[float] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    fault: str | None = None

    @property
    def best(self) -> float:
        """The least CPU seconds: what the work costs when nothing disturbs it. SideError where there are none."""
        return min(self._seconds())

    @property
    def quickest(self) -> float:
        """The least seconds of wall clock: for devices whose work is not the processor's."""
        self._seconds()
        return min(self.wall)

    @property
    def median(self) -> float:
        """The median CPU seconds."""
        return statistics.median(self._seconds())

    @property
    def spread(self) -> float:
        """(Most - least) / median of the CPU seconds: how far the figure can be trusted."""
        return (max(self.cpu) - min(self.cpu)) / self.median

    def _seconds(self) -> list[float]:
        if self.fault is not None:
            raise SideError(f"{self.side}: {self.fault}")
        return self.cpu
