"""Check DVC's cache, the outputs and the shard store against their hashes, and report what repairs them."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_pipeline.commands.prune import size_of
from fer_pipeline.health.damage import FSCK, Command, Damage, shell_line
from fer_pipeline.health.diagnosis import Diagnosis, diagnose
from fer_pipeline.health.dvc_project import Remote, read_config
from fer_pipeline.health.repair import SET_ASIDE, remove_damage
from fer_pipeline.sharding.locks import lock_exclusively

MAX_ROWS = 40
MAX_THREADS = 8
DEFAULT_STORE = Path(".store")
HEADER = ("what", "where", "output", "stage", "expected", "found")


@dataclass(frozen=True)
class Report:
    """What was checked, what was removed, and the text for a person."""

    diagnosis: Diagnosis
    remote: Remote | None  # the default one
    root: Path
    removed: tuple[Path, ...] = ()
    set_aside: tuple[Path, ...] = ()
    has_removed: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "checked": self.diagnosis.checked,
            "not_checked": self.diagnosis.not_checked,
            "findings": [one.to_json(self._repair_line(one)) for one in self.diagnosis.damages],
            "removed": [path.as_posix() for path in self.removed],
            "set_aside": [path.as_posix() for path in self.set_aside],
            "repair": self._repair_line(*self.diagnosis.damages),
        }

    def _repair_line(self, *damages: Damage) -> str:
        """One line for a shell that repairs the damages, without the removal once it is done."""
        commands = [command for damage in damages for command in damage.commands]
        return shell_line(one for one in commands if not (self.has_removed and one.name == FSCK))

    @property
    def text(self) -> str:
        """The report for a person: a summary, a table and the command that repairs everything."""
        damages = self.diagnosis.damages
        lines = [self._summary()]
        if damages:
            rows = [HEADER, *map(self._row, damages[:MAX_ROWS])]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
            lines += ["", *("  ".join(row).rstrip() for row in cells)]
        if len(damages) > MAX_ROWS:
            lines.append(f"… and {len(damages) - MAX_ROWS:,} more; --json lists all")
        if self.has_removed and self.removed:
            lines += ["", f"removed: {', '.join(map(self._relative, self.removed))}"]
        if self.set_aside:
            lines.append(f"no other copy is known of what is now in {SET_ASIDE}; look at it before you delete it")
        if repair := self._repair_line(*damages):
            lines += ["", f"to repair it, run: {repair}", *self._notes()]
        return "\n".join(lines)

    def _summary(self) -> str:
        counts, kinds = self.diagnosis.checked, [damage.kind for damage in self.diagnosis.damages]
        text = f"fsck: {counts['objects']:,} objects, {counts['files']:,} files of outputs, {counts['shards']:,} shards"
        text += f", {size_of(counts['bytes'])} read: "
        text += ", ".join(f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(kinds)) or "all intact"
        not_checked = self.diagnosis.not_checked.items()
        unchecked = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in not_checked if count)
        return text + (f" (not checked: {unchecked})" if unchecked else "")

    def _row(self, damage: Damage) -> tuple[str, ...]:
        where = f"{damage.place}: {self._relative(damage.path)}"
        return damage.kind, where, damage.output or "-", damage.stage or "-", damage.expected, damage.actual

    def _notes(self) -> list[str]:
        """What to know before one runs the commands."""
        names = {command.name for damage in self.diagnosis.damages for command in damage.commands}
        notes: list[str] = []
        if names & {"dvc pull", "dvc fetch", "dvc fetch --all-commits"} and self.remote and not self.remote.folder:
            if not self.remote.verify:
                verify = f"dvc remote modify {self.remote.name} verify true"
                notes.append(f"the remote {self.remote.name!r} was not checked; first let pull check it: {verify}")
            if rerun := self._rerun_line("dvc pull", "dvc fetch"):
                notes.append(f"where the remote does not have it intact, pull fails, and this makes it again: {rerun}")
        if rerun := self._rerun_line("dvc commit"):
            notes.append(f"where `dvc commit` finds that inputs have changed since, run instead: {rerun}")
        if "dvc add" in names:
            notes.append("no intact copy is known of what `dvc add` names: put one in its place before you run it")
        return notes

    def _rerun_line(self, *names: str) -> str:
        """The command that runs the stages of all damage that one of these commands repairs."""
        return shell_line(
            Command("dvc repro", (damage.stage,))
            for damage in self.diagnosis.damages
            if damage.stage and not damage.stage.endswith(".dvc") and any(one.name in names for one in damage.commands)
        )

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()


def run(
    *, store: Path = DEFAULT_STORE, remote: str | None = None, remove: bool = False, jobs: int | None = None
) -> Report:
    """Checks the project of this folder.

    Args:
        store: The folder of finished shards.
        remote: Check this remote too; it must be a folder.
        remove: Remove damaged bytes, while no stage is running, so that the printed command can repair them.
        jobs: Files read at once.
    """
    root, config = Path.cwd(), read_config(Path.cwd())
    options = (["--store", str(store)] if store != DEFAULT_STORE else []) + (["--remote", remote] if remote else [])
    removal, threads = Command(FSCK, (*options, "--remove")), jobs or min(os.cpu_count() or 1, MAX_THREADS)
    with ExitStack() as stack:
        if remove and store.is_dir():
            stack.enter_context(lock_exclusively(store))
        diagnosis = diagnose(root, config, store=root / store, remote=remote, removal=removal, threads=threads)
        removed, set_aside = remove_damage(root, diagnosis) if remove else ([], [])
    return Report(diagnosis, config.remote, root, tuple(removed), tuple(set_aside), has_removed=remove)
