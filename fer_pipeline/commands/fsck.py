"""A project in; what of DVC's cache, the outputs and the shard store is not what it was, and what heals it, out."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_pipeline.commands.prune import size_of
from fer_pipeline.core.progress import progress
from fer_pipeline.health import rot
from fer_pipeline.health.cures import FSCK, Cure, line, removal
from fer_pipeline.health.digests import Ledger
from fer_pipeline.health.dvc_config import DvcConfig, read_config
from fer_pipeline.health.faults import Fault
from fer_pipeline.health.inspection import Inspection, inspect
from fer_pipeline.health.outputs import promised
from fer_pipeline.sharding.locks import lock_exclusively

MEGABYTE = 1_000_000
MOST_ROWS = 40
MOST_JOBS = 8
DEFAULT_STORE = Path(".store")


@dataclass(frozen=True)
class Checkup:
    """What was checked and found, what was removed, and what a person is told."""

    inspection: Inspection
    config: DvcConfig
    root: Path
    removed: tuple[Path, ...] = ()
    aside: tuple[Path, ...] = ()
    has_removed: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """The checkup as JSON."""
        faults = [{**fault.content, "cure": self._line(fault.cures)} for fault in self.inspection.faults]
        return {
            "checked": self.inspection.checked,
            "not_checked": self.inspection.not_checked,
            "findings": faults,
            "removed": [path.as_posix() for path in self.removed],
            "set_aside": [path.as_posix() for path in self.aside],
            "cure": self.cure,
        }

    @property
    def cure(self) -> str:
        """One line for a shell that heals everything that was found."""
        return self._line([cure for fault in self.inspection.faults for cure in fault.cures])

    def _line(self, cures: Sequence[Cure]) -> str:
        return line(cure for cure in cures if not (self.has_removed and cure.command == FSCK))

    @property
    def text(self) -> str:
        """What a person is told."""
        faults = self.inspection.faults
        rows = [("what", "where", "output", "stage", "expected", "found")]
        rows += [self._row(fault) for fault in faults[:MOST_ROWS]]
        lines = [self._summary(), *(["", *_aligned(rows)] if faults else [])]
        if len(faults) > MOST_ROWS:
            lines.append(f"… and {len(faults) - MOST_ROWS:,} more; --json tells all")
        if self.has_removed and self.removed:
            lines += ["", f"removed: {', '.join(self._near(path) for path in self.removed)}"]
        if self.aside:
            lines.append(f"no other copy is known of what now lies in {rot.ASIDE}; look at it before you let it go")
        if self.cure:
            lines += ["", f"to heal it, run: {self.cure}", *self._notes()]
        return "\n".join(lines)

    def _summary(self) -> str:
        counts, left = self.inspection.checked, self.inspection.not_checked
        told = f"fsck: {counts['objects']:,} objects, {counts['files']:,} files of outputs, {counts['shards']:,} shards"
        told += f", {size_of(counts['bytes'])} read: "
        kinds = [fault.kind for fault in self.inspection.faults]
        told += ", ".join(f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(kinds)) or "all whole"
        unchecked = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in left.items() if count)
        return told + (f" (not checked: {unchecked})" if unchecked else "")

    def _row(self, fault: Fault) -> tuple[str, ...]:
        where = f"{fault.place}: {self._near(fault.path)}"
        return fault.kind, where, fault.out or "-", fault.stage or "-", fault.expected, fault.found

    def _notes(self) -> list[str]:
        commands = {cure.command for fault in self.inspection.faults for cure in fault.cures}
        notes: list[str] = []
        remote = self.config.remote
        if commands & {"dvc pull", "dvc fetch", "dvc fetch --all-commits"} and remote is not None and not remote.folder:
            made = line(
                Cure("dvc repro", (fault.stage,))
                for fault in self.inspection.faults
                if any(cure.command in ("dvc pull", "dvc fetch") for cure in fault.cures) and fault.stage
            )
            if not remote.verify:
                verify = f"dvc remote modify {remote.name} verify true"
                notes.append(
                    f"the remote {remote.name!r} was not looked at; first let pull check what it brings: {verify}"
                )
            if made:
                notes.append(f"where the remote does not have it whole, pull fails, and this makes it anew: {made}")
        if "dvc commit" in commands:
            made = line(
                Cure("dvc repro", (fault.stage,))
                for fault in self.inspection.faults
                if any(cure.command == "dvc commit" for cure in fault.cures) and not fault.stage.endswith(".dvc")
            )
            notes += [f"where `dvc commit` finds that inputs have changed since, run instead: {made}"] if made else []
        if "dvc add" in commands:
            notes.append("no whole copy is known of what `dvc add` names: put one in its place before you run it")
        return notes

    def _near(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()


def run(
    *, store: Path = DEFAULT_STORE, remote: str | None = None, remove: bool = False, jobs: int | None = None
) -> Checkup:
    """Checks the project of this folder; `remove` takes away what is rotten while no stage is at work."""
    root = Path.cwd()
    config = read_config(root)
    outputs = promised(root)
    options = (["--store", str(store)] if store != DEFAULT_STORE else []) + (["--remote", remote] if remote else [])
    threads = jobs or min(os.cpu_count() or 1, MOST_JOBS)

    def hashing(ledger: Ledger) -> None:
        pending = 0
        with progress("fsck", ledger.size // MEGABYTE, "MB") as advance:

            def count(size: int) -> None:
                nonlocal pending
                whole, pending = divmod(pending + size, MEGABYTE)
                if whole:
                    advance(whole)

            ledger.hash(jobs=threads, advance=count)

    with ExitStack() as stack:
        if remove and store.is_dir():
            stack.enter_context(lock_exclusively(store))
        found = inspect(
            root, config, outputs, store=root / store, remote=remote, removal=removal(options), hashing=hashing
        )
        removed, aside = rot.remove(root, found) if remove else ([], [])
    return Checkup(found, config, root, tuple(removed), tuple(aside), has_removed=remove)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
