"""Describe damaged bytes, and the commands that repair them."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

FSCK = "python -m fer_pipeline fsck"

# Damaged bytes are removed first; then what is intact elsewhere is fetched, and only the rest is made again.
ORDER = (
    "chmod u+r",
    FSCK,
    "dvc fetch",
    "dvc fetch --all-commits",
    "dvc pull",
    "rm -r",
    "touch",
    "dvc checkout",
    "dvc checkout --force",
    "dvc commit",
    "dvc add",
    "dvc update",
    "dvc repro",
    "dvc push",
    "dvc push --all-commits",
)


class Command(NamedTuple):
    """A shell command and what it is given."""

    name: str
    arguments: tuple[str, ...] = ()


def shell_line(commands: Iterable[Command]) -> str:
    """Joins commands into one line for a shell, each name once with all arguments; '' for none."""
    arguments: dict[str, dict[str, None]] = {}
    for command in commands:
        arguments.setdefault(command.name, {}).update(dict.fromkeys(command.arguments))
    ordered = sorted(arguments, key=ORDER.index)
    return " && ".join(shlex.join([*shlex.split(name), *arguments[name]]) for name in ordered)


@dataclass(frozen=True)
class Damage:
    """Bytes that are not what was recorded, reported once however many names their inode has."""

    kind: Literal["damaged", "missing", "changed", "unreadable"]
    place: Literal["cache", "workspace", "store", "remote"]
    path: Path
    output: str  # of the project, with the file in it; '' where no output of today needs it
    stage: str
    expected: str
    actual: str
    commands: tuple[Command, ...]

    @property
    def is_removable(self) -> bool:
        """Whether the bytes are of no use and stop DVC from restoring intact ones."""
        return self.kind in ("damaged", "unreadable") and any(command.name == FSCK for command in self.commands)

    @property
    def is_last_copy(self) -> bool:
        """Whether no stage makes these bytes and no intact copy is known."""
        restoring = {command.name for command in self.commands} - {FSCK, "dvc add"}
        return self.is_removable and self.place != "store" and not restoring

    def to_json(self, repair: str) -> dict[str, Any]:
        """Returns the damage as JSON with the shell line that repairs it."""
        return {
            "kind": self.kind,
            "place": self.place,
            "path": self.path.as_posix(),
            "out": self.output,
            "stage": self.stage,
            "expected": self.expected,
            "found": self.actual,
            "repair": repair,
        }
