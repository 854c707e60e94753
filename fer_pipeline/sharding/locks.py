"""One run of one stage and set at a time on a store, and none while it is pruned; the locks die with their process.

Source: flock(2). A file system that knows no locks is used without.
"""

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding.pruning import sweep

FOLDER = "locks"
WHOLE = ".store"  # held together by all runs, alone by pruning
WITHOUT = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def at_work(store: Path, owner: str) -> Iterator[None]:
    """A run of `owner` (stage@set) on a store; a DataError says who else is at it."""
    with _opened(store, WHOLE) as whole, _opened(store, owner) as own:
        if not _locked(own, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise DataError(f"another run of {owner} is at work on {store} ({_holder(own)}); wait for it, or end it")
        if _locked(whole, fcntl.LOCK_EX | fcntl.LOCK_NB):
            sweep(store)
        _locked(whole, fcntl.LOCK_SH)  # waits for pruning, which is soon over
        _sign(own)
        yield


@contextmanager
def alone(store: Path) -> Iterator[None]:
    """Nobody else on the store; a DataError names one who is."""
    with _opened(store, WHOLE) as whole:
        if not _locked(whole, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise DataError(f"{store} is in use: {_somebody(store)}; wait for it to end")
        yield


def _somebody(store: Path) -> str:
    for path in sorted((store / FOLDER).iterdir()):
        if path.name != WHOLE:
            with _opened(store, path.name) as other:
                if not _locked(other, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    return f"{path.name} is at work ({_holder(other)})"
    return "a run is at work"


@contextmanager
def _opened(store: Path, name: str) -> Iterator[int]:
    (store / FOLDER).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(store / FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
    return True


def _sign(descriptor: int) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    signature = {"pid": os.getpid(), "host": platform.node(), "since": now}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(signature).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "it has just begun"
