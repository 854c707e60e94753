"""A fault of the cache, the workspace, the store or a remote: what was expected, what was found, what heals it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fer_pipeline.health.cures import Cure, line

Kind = Literal["rotten", "missing", "changed", "unreadable"]
Place = Literal["cache", "workspace", "store", "remote"]

BRING = {
    "dvc fetch",
    "dvc fetch --all-commits",
    "dvc pull",
    "dvc commit",
    "dvc update",
    "dvc repro",
    "dvc push",
    "dvc push --all-commits",
}


@dataclass(frozen=True)
class Fault:
    """One fault, told once however many names its inode has."""

    kind: Kind
    place: Place
    path: Path
    out: str  # of the project, with the file in it; '' where no output of today needs it
    stage: str
    expected: str
    found: str
    cures: tuple[Cure, ...]

    @property
    def is_removable(self) -> bool:
        """Whether the bytes are of no use and in the way of whole ones."""
        return self.place != "workspace" and self.kind in ("rotten", "unreadable") and not self.is_denied

    @property
    def is_last(self) -> bool:
        """Whether these bytes are the last of their kind: no stage makes them, no whole copy is known."""
        return self.is_removable and self.place != "store" and not any(cure.command in BRING for cure in self.cures)

    @property
    def is_denied(self) -> bool:
        """Whether the file may be whole, but not read by this user."""
        return any(cure.command.startswith("chmod") for cure in self.cures)

    @property
    def content(self) -> dict[str, Any]:
        """The fault as JSON."""
        return {
            "kind": self.kind,
            "place": self.place,
            "path": self.path.as_posix(),
            "out": self.out,
            "stage": self.stage,
            "expected": self.expected,
            "found": self.found,
            "cure": line(self.cures),
        }
