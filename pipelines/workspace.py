"""Find, describe and lock the workspace of a run, give its stages their environment, and repair DVC's files in it.

`dvc.lock`: DVC appends a stage when it is done, and where stages run side by side that order is accidental;
`order_new_stages` leaves the bytes that `dvc repro` alone would leave. `.dvc/tmp/rwlock`: DVC writes it in place, so
that a kill may leave half a file or entries of dead processes, which stop every later command.
"""

import fcntl
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipelines import TELEMETRY_OFF
from pipelines.errors import FlowError

LOCK = "dvc.lock"
LOCK_BLOCK = re.compile(r"^  (?! )(.+):\s*$")  # begins the lines of one stage
STAGE_SETTINGS = {**TELEMETRY_OFF, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
RWLOCK_TRIES, SECONDS_BETWEEN_TRIES = 50, 0.02
_LOCKED: ContextVar[frozenset[Path]] = ContextVar("locked workspaces", default=frozenset())


def find_workspace(given: str | None = None) -> Path:
    """Return the folder of dvc.yaml: the given one, PIPELINES_WORKSPACE, or the working directory; else FlowError."""
    folder = Path(given or os.environ.get("PIPELINES_WORKSPACE") or ".").expanduser().resolve()
    for needed in ("dvc.yaml", ".dvc"):
        if not (folder / needed).exists():
            raise FlowError(f"{folder} has no {needed}; name the workspace or set PIPELINES_WORKSPACE")
    return folder


def stage_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a stage: this process's own, telemetry off, `python` is the one that runs the flow."""
    binaries = str(Path(sys.executable).parent)
    paths = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path and path != binaries]
    return {**os.environ, **STAGE_SETTINGS, "PATH": os.pathsep.join([binaries, *paths]), **(more or {})}


def read_params(workspace: Path) -> dict[str, Any]:
    """Return the settings of a workspace for names and tables; an empty dict where they cannot be read."""
    try:
        content = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):  # ValueError: a date that is none, text that is no UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def describe_workspace(workspace: Path) -> str:
    """Return `studio + street, studio_pool → baseline, vas, das`: anchor, pools, recipes; else the folder's name."""
    params = read_params(workspace)
    anchor = [str(params["anchor"])] if params.get("anchor") else []
    pools, recipes = (
        [", ".join(map(str, params[key]))] if isinstance(params.get(key), list | dict) and params[key] else []
        for key in ("pools", "recipes")
    )
    if not anchor + pools:
        return workspace.name
    return " → ".join([" + ".join(anchor + pools), *recipes])


class LockHeldError(Exception):
    """Another process holds a lock file; `str()` is what it wrote into it."""


@contextmanager
def hold_lock_file(path: Path, owner: str) -> Iterator[None]:
    """Hold a lock file that names its owner; LockHeldError where another holds it. The lock ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LockHeldError(file.read()) from None
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield


@contextmanager
def lock_workspace(workspace: Path, name: str) -> Iterator[bool]:
    """Hold the workspace for one run on this host; FlowError where another run holds it.

    Yields False where the caller holds it already (a flow within a flow), True otherwise.
    """
    if workspace in _LOCKED.get():
        yield False
        return
    path = workspace / ".dvc" / "tmp" / "pipelines.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock_file(path, f"{name!r} (process {os.getpid()} on {platform.node()})"))
        except LockHeldError as error:
            holder = str(error) or "another run"
            raise FlowError(f"{workspace} is in use by {holder}; wait for it or cancel it") from None
        except OSError as error:
            cure = "a run needs a workspace of its own, on a file system with locks"
            raise FlowError(f"{path} cannot be written and locked: {error.strerror}; {cure}") from None
        _LOCKED.set(_LOCKED.get() | {workspace})
        try:
            yield True
        finally:
            _LOCKED.set(_LOCKED.get() - {workspace})


def read_locked_stages(path: Path) -> list[str]:
    """Return the stages of a dvc.lock in its order; none where there is no file."""
    return list(_split_lock(path.read_text(encoding="utf-8"))[1]) if path.exists() else []


def order_new_stages(path: Path, before: Sequence[str], order: Sequence[str]) -> bool:
    """Put the stages that were not in the dvc.lock `before` behind those that were, as in `order`.

    Returns whether that changed the file. A file that is not laid out as DVC writes it is left as it is.
    """
    if not path.exists():
        return False
    text = path.read_text(encoding="utf-8")
    head, blocks = _split_lock(text)
    old = [name for name in before if name in blocks]
    places = {address: place for place, address in enumerate(order)}
    new = sorted((name for name in blocks if name not in old), key=lambda name: places.get(name, len(places)))
    ordered = head + "".join(blocks[name] for name in [*old, *new])
    if ordered == text or yaml.safe_load(ordered) != yaml.safe_load(text):
        return False
    replace_text(path, ordered)
    return True


def replace_text(path: Path, text: str) -> None:
    """Write a text beside a file and put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _split_lock(text: str) -> tuple[str, dict[str, str]]:
    """Return what stands before the first stage, and the lines of each."""
    head, blocks, name, inside = "", {}, None, False
    for line in text.splitlines(keepends=True):
        if inside and (match := LOCK_BLOCK.match(line)):
            name = str(yaml.safe_load(match.group(1)))
            blocks[name] = line
        elif name is not None:
            blocks[name] += line
        else:
            head += line
            inside = line.rstrip() == "stages:"
    return head, blocks


def repair_rwlock(workspace: Path) -> str | None:
    """Remove what a killed `dvc` left in its lock of paths; return a line on it, None where there was nothing.

    Entries of a process whose number another program has now count as left, too.
    """
    folder = workspace / ".dvc" / "tmp"
    if not (folder / "rwlock").exists():
        return None
    with (folder / "rwlock.lock").open("a+", encoding="utf-8") as guard:  # under which DVC edits its lock of paths
        for _ in range(RWLOCK_TRIES):
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(SECONDS_BETWEEN_TRIES)
        else:
            return None  # a living dvc is writing it; the next stage looks again
        removed = _remove_dead_entries(folder / "rwlock", workspace)
    return None if removed is None else f"repaired .dvc/tmp/rwlock: removed {removed}, left by a killed run"


def _remove_dead_entries(path: Path, workspace: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written, read = content.get("write", {}), content.get("read", {})
        living = {
            "write": {name: entry for name, entry in written.items() if _is_alive(entry)},
            "read": {name: some for name, all_ in read.items() if (some := [one for one in all_ if _is_alive(one)])},
        }
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        if any(_is_dvc_in(workspace, process) for process in psutil.process_iter()):
            return None
        path.unlink(missing_ok=True)
        return "a half-written file"
    dead = len(written) - len(living["write"])
    dead += sum(map(len, read.values())) - sum(map(len, living["read"].values()))
    if not dead:
        return None
    if any(living.values()):
        replace_text(path, json.dumps(living))
    else:
        path.unlink(missing_ok=True)
    return f"{dead} entries of dead processes"


def _is_alive(entry: Mapping[str, Any]) -> bool:
    """Tell whether the process of an entry lives; another program with its number has another command line."""
    number, command = entry["pid"], entry["cmd"]
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
        inside = Path(process.cwd()).resolve().is_relative_to(workspace)
        return inside and any("dvc" in Path(word).name for word in process.cmdline()[:4])
    except (psutil.Error, OSError):
        return False
