"""What heals a fault: DVC's commands in the order in which they must run, those of one kind joined into one."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FSCK = "python -m fer_pipeline fsck"

# Rot must be gone first; then what is whole elsewhere is brought, and only the rest is made anew.
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


@dataclass(frozen=True)
class Cure:
    """One command and what it is given."""

    command: str
    targets: tuple[str, ...] = ()


def line(cures: Iterable[Cure]) -> str:
    """The commands for a shell, each once, with all its targets; '' for none."""
    targets: dict[str, dict[str, None]] = {}
    for cure in cures:
        targets.setdefault(cure.command, {}).update(dict.fromkeys(cure.targets))
    ordered = sorted(targets, key=ORDER.index)
    return " && ".join(shlex.join([*shlex.split(command), *targets[command]]) for command in ordered)


def removal(options: Sequence[str]) -> Cure:
    """The call of fsck that takes rot away; `options` are those that it was called with."""
    return Cure(FSCK, (*options, "--remove"))
