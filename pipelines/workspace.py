"""The workspace of a run: where it is, that nobody else is at work in it, the environment of what runs in it."""

import fcntl
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipelines.errors import FlowError

QUIET = {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
_HELD: set[Path] = set()


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

    Yields False where this process holds it already (a flow within a flow), True otherwise. The lock ends with the
    process, however it dies.
    """
    if workspace in _HELD:
        yield False
        return
    place = workspace / ".dvc" / "tmp" / "pipelines.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read() or "another run"
            raise FlowError(f"{workspace} is in use by {holder}; wait for it or cancel it") from None
        file.truncate(0)
        file.write(f"{name!r} (process {os.getpid()} on {platform.node()})")
        file.flush()
        _HELD.add(workspace)
        try:
            yield True
        finally:
            _HELD.discard(workspace)


def mend_dvc_lock(workspace: Path) -> str | None:
    """Takes away what a killed `dvc` left in its lock of paths; a line on what was mended, None where it was whole.

    DVC writes `.dvc/tmp/rwlock` in place: a kill in that moment leaves a file that stops every later command. Entries
    of processes that are gone, or whose number another program bears now, would stop it too.
    """
    place = workspace / ".dvc" / "tmp" / "rwlock"
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        infos = [
            *content.get("write", {}).values(),
            *(one for many in content.get("read", {}).values() for one in many),
        ]
        holders = [info for info in infos if info]
        if all(_is_dvc(int(info["pid"])) for info in holders):
            return None
        if any(_is_dvc(int(info["pid"])) for info in holders):
            return None  # DVC drops the dead beside the living by itself
        found = f"{len(holders)} entries of dead processes"
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        if any(_is_dvc(process.pid, workspace) for process in psutil.process_iter()):
            return None
        found = "a half-written file"
    place.unlink(missing_ok=True)
    return f"removed .dvc/tmp/rwlock: {found}, left by a killed run"


def _is_dvc(pid: int, workspace: Path | None = None) -> bool:
    try:
        process = psutil.Process(pid)
        here = workspace is None or Path(process.cwd()).resolve().is_relative_to(workspace)
        return here and any("dvc" in Path(word).name for word in process.cmdline()[:4])
    except (psutil.Error, OSError):
        return False
