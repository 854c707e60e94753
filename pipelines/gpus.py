"""The GPUs of this host, and a lock on each, so that two flows in two workspaces never share one.

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
SECONDS_FOR_THE_DRIVER = 60.0


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES names, or the indices that nvidia-smi tells; none where there is no driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        words = [one.strip() for one in named.split(",")]
        # CUDA takes -1 for the end of the list.
        return tuple(dict.fromkeys(filter(None, takewhile(lambda one: one != "-1", words))))
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_FOR_THE_DRIVER)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    # A driver without GPUs says so in words.
    return tuple(one for one in told.stdout.split() if one.isdigit()) if told.returncode == 0 else ()


@contextmanager
def holding(gpu: str, waiting: Callable[[], None], place: Path | None = None) -> Iterator[None]:
    """Holds one GPU of this host until the block ends; `waiting` is called while another holds it, and may raise."""
    file = _open(place or Path(tempfile.gettempdir()) / "pipelines-gpus", gpu.replace("/", "_"))
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(SECONDS_BETWEEN_TRIES)
        with suppress(OSError):
            os.utime(file)  # what sweeps the temporary folder takes old files, locked or not
        yield
    finally:
        os.close(file)


def _open(place: Path, name: str) -> int:
    """The file of a lock, which any user of the host may hold; a lock needs no more than reading."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        place.mkdir()
        place.chmod(0o1777)  # mkdir's own mode is less the umask
    except FileExistsError:
        pass
    try:
        return os.open(place / name, flags)  # without O_CREAT: the kernel refuses that for another user's file here
    except FileNotFoundError:
        return os.open(place / name, flags | os.O_CREAT, 0o644)
