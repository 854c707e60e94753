"""Lock on this host what a run holds alone, its workspace and GPUs, and repair DVC's own lock of paths after kills.

A lock ends with the process that holds it, however it dies. The slots of a Prefect limit are counted apart: they say
how many stages may hold a GPU over all hosts. `.dvc/tmp/rwlock`: DVC writes it in place, so that a kill may leave half
a file or entries of dead processes, which stop every later command.
"""

import errno
import fcntl
import json
import os
import platform
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil

from pipelines import FlowError, RefusedError
from pipelines.documents import read_json
from pipelines.process_tree import find_flow
from pipelines.workspace import make_private_folder, replace_text

MOST_OF_OWNER = 1000  # characters of what another user's lock may say
GPU_SECONDS_BETWEEN_TRIES = 1.0
DRIVER_SECONDS = 60.0
RWLOCK_TRIES, RWLOCK_SECONDS_BETWEEN_TRIES = 50, 0.02
_LOCKED: ContextVar[frozenset[Path]] = ContextVar("locked workspaces", default=frozenset())


@contextmanager
def hold_lock_file(path: Path, owner: str) -> Iterator[None]:
    """Hold a lock file that names its owner; BlockingIOError with the owner's name where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(_open_plain(path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8", errors="replace") as file:
        if not _try_lock(file.fileno()):
            file.seek(0)
            raise BlockingIOError(file.read(MOST_OF_OWNER))
        file.truncate(0)
        file.write(owner)
        file.flush()
        yield


@contextmanager
def lock_workspace(workspace: Path, name: str) -> Iterator[bool]:
    """Hold the workspace for one run on this host; RefusedError where another run holds it.

    Yields False where the caller holds it already (a flow within a flow), True otherwise.
    """
    if workspace in _LOCKED.get():
        yield False
        return
    path = workspace / ".dvc" / "tmp" / "pipelines.lock"
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock_file(path, f"{name!r} (process {find_flow()} on {platform.node()})"))
        except BlockingIOError as error:
            holder = str(error) or "another run"
            raise RefusedError(f"{workspace} is in use by {holder}; wait for it or cancel it") from None
        except OSError as error:
            cure = "a run needs a workspace of its own, on a file system with locks"
            raise FlowError(f"{path} cannot be written and locked: {error.strerror}; {cure}") from None
        _LOCKED.set(_LOCKED.get() | {workspace})
        try:
            yield True
        finally:
            _LOCKED.set(_LOCKED.get() - {workspace})


def visible_gpus() -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES names, or the indices of nvidia-smi; none where there is no driver."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is not None:
        names = [name.strip() for name in value.split(",")]
        # CUDA takes -1 for the end of the list.
        return tuple(dict.fromkeys(filter(None, takewhile(lambda name: name != "-1", names))))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    # A driver without GPUs says so in words.
    return tuple(word for word in done.stdout.split() if word.isdigit()) if done.returncode == 0 else ()


@contextmanager
def hold_gpu(gpu: str, on_wait: Callable[[], None], folder: Path | None = None) -> Iterator[str]:
    """Hold one GPU of this host until the block ends; `on_wait` is called while another holds it, and may raise.

    Any user of the host may hold it: the folder is open to all, and a lock needs no more than reading its file. Where
    what lies there is no lock that this user may read, the GPU is held among one's own runs, and a warning is yielded.
    """
    folder, warning = folder or Path(tempfile.gettempdir()) / "pipelines-gpus", ""
    path = folder / gpu.replace("/", "_")
    with suppress(OSError):
        folder.mkdir()
        folder.chmod(0o1777)  # mkdir's own mode is less the umask
    try:
        file = _open_gpu_lock(path)
    except OSError as error:
        warning = (
            f"{path} cannot be locked ({error.strerror}): GPU {gpu} is held among your own runs alone, other users do "
            "not see it; whoever put that there is to remove it"
        )
        path = make_private_folder(folder.with_name(f"{folder.name}-{os.getuid()}"), "TMPDIR") / path.name
        try:
            file = _open_gpu_lock(path)
        except OSError as own:
            raise FlowError(
                f"{path} cannot be locked ({own.strerror}); remove it, or set TMPDIR to another folder"
            ) from None
    try:
        while not _try_gpu_lock(file, path):
            on_wait()
            time.sleep(GPU_SECONDS_BETWEEN_TRIES)
        with suppress(OSError):
            os.utime(file)  # cleaners of the temporary folder take old files, locked or not
        yield warning
    finally:
        os.close(file)


def _open_gpu_lock(path: Path) -> int:
    """Open a lock, or make one, that every user may read; OSError for whatever else lies there."""
    try:
        file = _open_plain(path, os.O_RDONLY)  # without O_CREAT: the kernel refuses that for another user's file here
    except FileNotFoundError:
        file = _open_plain(path, os.O_RDONLY | os.O_CREAT)
    if os.fstat(file).st_uid == os.getuid():
        os.fchmod(file, 0o644)  # the mode that it was made with is less the umask
    return file


def _try_gpu_lock(file: int, path: Path) -> bool:
    try:
        return _try_lock(file)
    except OSError as error:
        raise FlowError(
            f"{path} cannot be locked: {error.strerror}; set TMPDIR to a folder on a disk of this host"
        ) from None


def _open_plain(path: Path, flags: int) -> int:
    """Open a file at once, through no link; OSError for what is no plain file, a pipe for example."""
    file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


def repair_rwlock(workspace: Path) -> str | None:
    """Remove what a killed `dvc` left in its lock of paths; return a line on it, None where there was nothing.

    Entries of a process whose number another program has now count as left, too.
    """
    path = workspace / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return None
    guard = path.with_name("rwlock.lock")  # under which DVC edits its lock of paths
    try:
        with os.fdopen(_open_plain(guard, os.O_RDWR | os.O_CREAT)) as file:
            for _ in range(RWLOCK_TRIES):
                if _try_lock(file.fileno()):
                    removed = _remove_dead_entries(path, workspace)
                    return removed and f"repaired .dvc/tmp/rwlock: removed {removed}, left by a killed run"
                time.sleep(RWLOCK_SECONDS_BETWEEN_TRIES)
    except OSError as error:
        return f".dvc/tmp/rwlock is left as it is: {guard.name} beside it cannot be locked ({error.strerror})"
    return None  # a living dvc is writing it; the next stage looks again


def _try_lock(file: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _remove_dead_entries(path: Path, workspace: Path) -> str | None:
    try:
        content = read_json(path)
        written, read = content.get("write", {}), content.get("read", {})
        living = {
            "write": {name: entry for name, entry in written.items() if _is_alive(entry)},
            "read": {name: some for name, all_ in read.items() if (some := [one for one in all_ if _is_alive(one)])},
        }
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        if any(_is_dvc_in(workspace, process) for process in psutil.process_iter()):
            return None
        path.unlink(missing_ok=True)
        return "a half-written file"
    dead = len(written) - len(living["write"])
    dead += sum(map(len, read.values())) - sum(map(len, living["read"].values()))
    if dead and any(living.values()):
        replace_text(path, json.dumps(living))
    elif dead:
        path.unlink(missing_ok=True)
    return f"{dead} entries of dead processes" if dead else None


def _is_alive(entry: Mapping[str, Any]) -> bool:
    """Tell whether the process of an entry lives; another program with its number has another command line."""
    number, command = entry["pid"], entry["cmd"]
    try:
        # The first word differs: `python -m dvc` calls itself by the path of a file.
        return " ".join(psutil.Process(number).cmdline()).endswith(command.partition(" ")[2])
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _is_dvc_in(workspace: Path, process: psutil.Process) -> bool:
    with suppress(psutil.Error, OSError):
        inside = Path(process.cwd()).resolve().is_relative_to(workspace)
        return inside and any("dvc" in Path(word).name for word in process.cmdline()[:4])
    return False
