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
from contextlib import contextmanager
from pathlib import Path

SECONDS_BETWEEN_TRIES = 1.0


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES names, or the indices that nvidia-smi tells; none where there is no driver."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(one.strip() for one in named.split(",") if one.strip() and one.strip() != "-1")
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(told.stdout.split()) if told.returncode == 0 else ()


@contextmanager
def holding(gpu: str, waiting: Callable[[], None], place: Path | None = None) -> Iterator[None]:
    """Holds one GPU of this host until the block ends; `waiting` is called while another holds it, and may raise."""
    place = place or Path(tempfile.gettempdir()) / "pipelines-gpus"
    place.mkdir(mode=0o777, exist_ok=True)
    # Read-only: a lock needs no more, and the file may be another user's.
    file = os.open(place / gpu.replace("/", "_"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(file)
