"""Check DVC's cache, the outputs and the shard store against their hashes, and report what repairs them."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from json import dumps
from pathlib import Path

from fer_pipeline.commands.prune import size_of
from fer_pipeline.commands.results import format_table
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import replacing
from fer_pipeline.core.settings import STORE, Summary
from fer_pipeline.health.diagnosis import FSCK, Command, Damage, Diagnosis, diagnose, hash_file, object_path, shell_line
from fer_pipeline.health.dvc_project import Remote, read_config
from fer_pipeline.sharding.locks import lock_exclusively

MAX_ROWS = 40
SET_ASIDE = Path(".dvc/tmp/damaged")
MAX_THREADS = 8
HEADER = ("what", "where", "output", "stage", "expected", "found")
KEYS = ("kind", "place", "path", "out", "stage", "expected", "found")  # of a damage as JSON


def run(
    *, remove: bool = False, remote: str | None = None, jobs: int | None = None, json: bool = False, store: Path = STORE
) -> Summary:
    """Hash DVC's cache, the outputs and the finished shards again; report damage and the command that repairs it.

    Args:
        remove: Remove damaged bytes, so that the printed command works.
        remote: Check this remote too; it must be a folder.
        jobs: Files read at once.
        json: Tell it as JSON.
        store: Where finished shards and the states of unfinished work are kept.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, found {jobs}")
    root, config = Path.cwd(), read_config(Path.cwd())
    options = (["--store", str(store)] if store != STORE else []) + (["--remote", remote] if remote else [])
    removal, threads = Command(FSCK, (*options, "--remove")), jobs or min(os.cpu_count() or 1, MAX_THREADS)
    with lock_exclusively(store) if remove and store.is_dir() else nullcontext():
        diagnosis = diagnose(root, config, store=root / store, remote=remote, removal=removal, threads=threads)
        removed, set_aside = remove_damage(root, diagnosis) if remove else ([], [])

    def relative(path: Path) -> str:
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()

    damages = diagnosis.damages
    if remove:  # what is printed goes on after the removal
        damages = [one._replace(commands=tuple(c for c in one.commands if c.name != FSCK)) for one in damages]
    repair = shell_line(command for one in damages for command in one.commands)
    if json:
        findings = [dict(zip(KEYS, one, strict=False)) | {"repair": shell_line(one.commands)} for one in damages]
        content = {"checked": diagnosis.checked, "not_checked": diagnosis.not_checked, "findings": findings}
        content |= {"removed": removed, "set_aside": set_aside, "repair": repair}
        text = dumps(content, indent=1, default=Path.as_posix)
    else:
        counts, kinds = diagnosis.checked, [damage.kind for damage in damages]
        line = f"fsck: {counts['objects']:,} objects, {counts['files']:,} files of outputs, {counts['shards']:,} shards"
        line += f", {size_of(counts['bytes'])} read: "
        line += ", ".join(f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(kinds)) or "all intact"
        rest = diagnosis.not_checked.items()
        unchecked = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in rest if count)
        lines = [line + (f" (not checked: {unchecked})" if unchecked else "")]
        if damages:
            rows = [
                (kind, f"{place}: {relative(path)}", output or "-", stage or "-", expected, actual)
                for kind, place, path, output, stage, expected, actual, _ in damages[:MAX_ROWS]
            ]
            lines += ["", *format_table([HEADER, *rows])]
        if len(damages) > MAX_ROWS:
            lines.append(f"… and {len(damages) - MAX_ROWS:,} more; --json lists all")
        if removed:
            lines += ["", f"removed: {', '.join(relative(path) for path in removed)}"]
        if set_aside:
            lines.append(f"no other copy is known of what is now in {SET_ASIDE}; look at it before you delete it")
        if repair:
            lines += ["", f"to repair it, run: {repair}", *_notes(damages, config.remote)]
        text = "\n".join(lines)
    return Summary("", text, failed=bool(damages) and not remove)


def remove_damage(root: Path, diagnosis: Diagnosis) -> tuple[list[Path], list[Path]]:
    """Removes damaged bytes from the cache, the shard store, the workspace and the remote, under every name.

    DVC looks at names, not at bytes: while a damaged object is there, neither pull nor push nor repro replaces it.

    Returns:
        The removed paths, and where bytes lie now of which no other copy is known.
    """
    removed: list[Path] = []
    set_aside: list[Path] = []
    for damage in diagnosis.damages:
        path, commands = damage.path, {command.name for command in damage.commands}
        if damage.place == "store" and FSCK in commands:
            removed.append(_remove(path, diagnosis))
        elif FSCK in commands and path.exists():
            again = hash_file(path, frozenset({"md5"}))
            if not again.error and again.md5 == damage.expected.removeprefix("md5 "):
                continue  # somebody has repaired it since
            if damage.kind == "damaged" and commands <= {FSCK, "dvc add"}:  # the last copy, and no stage makes it
                set_aside.append(root / SET_ASIDE / (path.parent.name + path.name))
                with replacing(set_aside[-1]) as temporary:
                    shutil.copyfile(path, temporary)
            status = path.stat()
            removed += [_remove(name, diagnosis) for name in diagnosis.hasher.paths[status.st_dev, status.st_ino]]
        if damage.place == "remote":
            removed += _remove_lists(damage, diagnosis)
    return list(dict.fromkeys(removed)), set_aside


def _remove(path: Path, diagnosis: Diagnosis) -> Path:
    """Removes a file, or the shard of the store that it belongs to; returns what was removed."""
    store = diagnosis.store
    if path.is_relative_to(store.root / "shards"):
        key = path.relative_to(store.root / "shards").parts[1]
        store.remove(key)
        return store.shard(key)
    path.unlink(missing_ok=True)
    return path


def _remove_lists(damage: Damage, diagnosis: Diagnosis) -> Iterator[Path]:
    """Removes the remote's lists of folders with this file: `dvc push` takes every file of a list to be there."""
    remote, damaged_name = diagnosis.remote, damage.path.parent.name + damage.path.name
    assert remote is not None
    for name in remote.inodes:
        path = object_path(remote.root, name)
        if name.endswith(".dir") and path.exists() and damaged_name in (remote.list_files(name) or {}).values():
            # A list that is nowhere else stays: without it the other files of its folder were lost too.
            if diagnosis.cache.is_intact(name) or damage.output:
                path.unlink()
                yield path


def _notes(damages: Sequence[Damage], remote: Remote | None) -> list[str]:
    """What to know before one runs the commands."""

    def rerun_line(*names: str) -> str:  # that runs the stages of all damage that one of these commands repairs
        stages = [one.stage for one in damages if any(command.name in names for command in one.commands)]
        return shell_line(Command("dvc repro", (one,)) for one in stages if one and not one.endswith(".dvc"))

    names = {command.name for damage in damages for command in damage.commands}
    notes: list[str] = []
    if names & {"dvc pull", "dvc fetch", "dvc fetch --all-commits"} and remote and not remote.folder:
        if not remote.verify:
            verify = f"dvc remote modify {remote.name} verify true"
            notes.append(f"the remote {remote.name!r} was not checked; first let pull check it: {verify}")
        if rerun := rerun_line("dvc pull", "dvc fetch"):
            notes.append(f"where the remote does not have it intact, pull fails, and this makes it again: {rerun}")
    if rerun := rerun_line("dvc commit"):
        notes.append(f"where `dvc commit` finds that inputs have changed since, run instead: {rerun}")
    if "dvc add" in names:
        notes.append("no intact copy is known of what `dvc add` names: put one in its place before you run it")
    return notes
