"""Lock a store: one run of a stage and set at a time, and none while it is pruned; a lock ends with its process.

Source: flock(2). It is shared by all runs and exclusive for pruning, and the file names its holder, neither of which
the package filelock does. A file system without locks is used without.
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

from fer_pipeline.core.documents import one_line, parse_json
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import remove

FOLDER = "locks"
TEMPORARY = (".*.tmp", "*/.*.tmp", "shards/*/.*.tmp", "shards/*/.*.old", "checksums/*/.*.tmp", "states/*/*/.*.tmp")
WHOLE_STORE = ".store"  # shared by all runs, exclusive for pruning
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def lock_for_run(store: Path, owner: str) -> Iterator[None]:
    """Locks a store for a run of `owner` (stage@set); a DataError names another run of it."""
    with _opened(store, WHOLE_STORE) as whole, _opened(store, owner) as own:
        if not _lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise DataError(f"another run of {owner} is at work on {store} ({_holder(own)}); wait for it, or end it")
        if _lock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in temporary_files(store):  # of runs that were killed while they wrote
                remove(path)
        _lock(whole, fcntl.LOCK_SH)  # waits for pruning, which is soon over
        holder = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(own, 0)
        os.pwrite(own, json.dumps(holder).encode(), 0)
        yield


@contextmanager
def lock_exclusively(store: Path) -> Iterator[None]:
    """Locks a store that no run is at work on; a DataError names one that is."""
    with _opened(store, WHOLE_STORE) as whole:
        if not _lock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB):
            work = "a run is at work"
            for name in sorted(path.name for path in (store / FOLDER).iterdir() if path.name != WHOLE_STORE):
                with _opened(store, name) as own:
                    if not _lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB):
                        work = f"{name} is at work ({_holder(own)})"
                        break
            raise DataError(f"{store} is in use: {work}; wait for it to end")
        yield


def temporary_files(store: Path) -> list[Path]:
    """Lists what is being written, or was by a run that was killed."""
    return [path for pattern in TEMPORARY for path in store.glob(pattern)]


@contextmanager
def _opened(store: Path, name: str) -> Iterator[int]:
    (store / FOLDER).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(store / FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def _holder(descriptor: int) -> str:
    try:
        holder = parse_json(os.pread(descriptor, 4096, 0))
        return one_line(f"process {holder['pid']} on {holder['host']}, since {holder['since']}", 200)
    except (ValueError, KeyError, TypeError):
        return "it has just begun"
