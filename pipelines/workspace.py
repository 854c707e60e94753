"""The workspace of a run: where it is, that nobody else is at work in it, the environment of what runs in it."""

import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil

from pipelines.errors import FlowError

QUIET = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
GUARD_TRIES, SECONDS_BETWEEN_TRIES = 50, 0.02
_HELD: ContextVar[frozenset[Path]] = ContextVar("held workspaces", default=frozenset())


def find_workspace(given: str | None = None) -> Path:
    """The folder of dvc.yaml: the given one, PIPELINES_WORKSPACE, or the working directory; FlowError without one."""
    folder = Path(given or os.environ.get("PIPELINES_WORKSPACE") or ".").expanduser().resolve()
    for needed in ("dvc.yaml", ".dvc"):
        if not (folder / needed).exists():
            raise FlowError(f"{folder} has no {needed}; name the workspace or set PIPELINES_WORKSPACE")
    return folder


def stage_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a stage: this process's own, telemetry off, `python` is the one that runs the flow."""
    binaries = str(Path(sys.executable).parent)
    paths = [one for one in os.environ.get("PATH", "").split(os.pathsep) if one and one != binaries]
    return {**os.environ, **QUIET, "PATH": os.pathsep.join([binaries, *paths]), **(more or {})}


@contextmanager
def alone(workspace: Path, name: str) -> Iterator[bool]:
    """Holds the workspace for one run on this host; FlowError where another run holds it.

    Yields False where the caller holds it already (a flow within a flow), True otherwise. The lock ends with the
    process, however it dies.
    """
    if workspace in _HELD.get():
        yield False
        return
    place = workspace / ".dvc" / "tmp" / "pipelines.lock"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        opened = place.open("a+", encoding="utf-8")
    except OSError as error:
        raise FlowError(f"{place} cannot be written: {error.strerror}; a run needs a workspace of its own") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another run"
            raise FlowError(f"{workspace} is in use by {holder}; wait for it or cancel it") from None
        except OSError as error:
            raise FlowError(f"{place} cannot be locked: {error.strerror}; use a file system that can lock") from None
        file.truncate(0)
        file.write(f"{name!r} (process {os.getpid()} on {platform.node()})")
        file.flush()
        _HELD.set(_HELD.get() | {workspace})
        try:
            yield True
        finally:
            _HELD.set(_HELD.get() - {workspace})


def mend_dvc_lock(workspace: Path) -> str | None:
    """Takes away what a killed `dvc` left in its lock of paths; a line on what was mended, None where it was whole.

    DVC writes `.dvc/tmp/rwlock` in place: a kill in that moment leaves a file that stops every later command. Entries
    of a process whose number another program bears now would stop it, too.
    """
    folder = workspace / ".dvc" / "tmp"
    if not (folder / "rwlock").exists():
        return None
    with _guarding(folder / "rwlock.lock") as free:
        # Where it is not free a living dvc is at it; the next stage looks again.
        found = _mend(folder / "rwlock", workspace) if free else None
    return None if found is None else f"mended .dvc/tmp/rwlock: {found}, left by a killed run"


def _mend(place: Path, workspace: Path) -> str | None:
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        written, read = content.get("write", {}), content.get("read", {})
        left = {
            "write": {path: info for path, info in written.items() if _lives(info)},
            "read": {path: some for path, infos in read.items() if (some := [one for one in infos if _lives(one)])},
        }
        dead = len(written) - len(left["write"]) + sum(map(len, read.values())) - sum(map(len, left["read"].values()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        if any(_is_dvc_in(workspace, process) for process in psutil.process_iter()):
            return None
        place.unlink(missing_ok=True)
        return "a half-written file"
    if not dead:
        return None
    if any(left.values()):
        beside = place.with_name("rwlock.mended")
        beside.write_text(json.dumps(left), encoding="utf-8")
        beside.replace(place)
    else:
        place.unlink(missing_ok=True)
    return f"{dead} entries of dead processes"


@contextmanager
def _guarding(place: Path) -> Iterator[bool]:
    """Holds the lock under which DVC edits its lock of paths, as DVC does; False where it cannot be had."""
    with place.open("a+", encoding="utf-8") as file:
        free = False
        for _ in range(GUARD_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
                break
            except BlockingIOError:
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield free


def _lives(info: Mapping[str, Any]) -> bool:
    """Whether the process of an entry lives; another program with its number has other words."""
    number, command = info["pid"], info["cmd"]
    if type(number) is not int or not isinstance(command, str):
        raise TypeError("no entry of DVC's")
    try:
        # The first word differs: `python -m dvc` calls itself by the path of a file.
        return " ".join(psutil.Process(number).cmdline()).endswith(command.partition(" ")[2])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _is_dvc_in(workspace: Path, process: psutil.Process) -> bool:
    try:
        here = Path(process.cwd()).resolve().is_relative_to(workspace)
        return here and any("dvc" in Path(word).name for word in process.cmdline()[:4])
    except (psutil.Error, OSError):
        return False
