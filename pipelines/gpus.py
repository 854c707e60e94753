"""List the GPUs of this host and lock them, so that two flows in two workspaces never share one.

A lock ends with the process that holds it, however it dies. The slots of a Prefect limit are counted apart: they say
how many stages may hold a GPU over all hosts.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

SECONDS_BETWEEN_TRIES = 1.0
DRIVER_SECONDS = 60.0


def visible_gpus() -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES names, or the indices of nvidia-smi; none where there is no driver."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is not None:
        names = [name.strip() for name in value.split(",")]
        # CUDA takes -1 for the end of the list.
        return tuple(dict.fromkeys(filter(None, takewhile(lambda name: name != "-1", names))))
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    # A driver without GPUs says so in words.
    return tuple(word for word in done.stdout.split() if word.isdigit()) if done.returncode == 0 else ()


@contextmanager
def hold_gpu(gpu: str, on_wait: Callable[[], None], folder: Path | None = None) -> Iterator[None]:
    """Hold one GPU of this host until the block ends; `on_wait` is called while another holds it, and may raise."""
    file = _open_lock(folder or Path(tempfile.gettempdir()) / "pipelines-gpus", gpu.replace("/", "_"))
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                on_wait()
                time.sleep(SECONDS_BETWEEN_TRIES)
        with suppress(OSError):
            os.utime(file)  # cleaners of the temporary folder take old files, locked or not
        yield
    finally:
        os.close(file)


def _open_lock(folder: Path, name: str) -> int:
    """Open the file of a lock, which any user of the host may hold; a lock needs no more than reading."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)  # mkdir's own mode is less the umask
    try:
        return os.open(folder / name, flags)  # without O_CREAT: the kernel refuses that for another user's file here
    except FileNotFoundError:
        return os.open(folder / name, flags | os.O_CREAT, 0o644)
