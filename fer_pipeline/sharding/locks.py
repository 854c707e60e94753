"""Lock a store: one run of a stage and set at a time, and none while it is pruned; a lock ends with its process.

Source: flock(2). It is shared by all runs and exclusive for pruning, and the file names its holder, neither of which
the package filelock does. A store on a file system without locks is used without, and nothing is swept or pruned there:
whether a run is at work cannot be told.
"""

import errno
import fcntl
import json
import os
import platform
import stat
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
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# Another user, or who has written before, may have put a link or a pipe in the place of a lock.
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def lock_for_run(store: Path, owner: str) -> Iterator[tuple[str, ...]]:
    """Locks a store for a run of `owner` (stage@set) and yields warnings; a DataError names another run of it."""
    with _opened(store, WHOLE_STORE) as whole, _opened(store, owner) as own:
        has_locks = _lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if has_locks is False:
            raise DataError(f"another run of {owner} is at work on {store} ({_holder(own)}); wait for it, or end it")
        if _lock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for path in temporary_files(store):  # of runs that were killed while they wrote
                remove(path)
        _lock(whole, fcntl.LOCK_SH)  # waits for pruning, which is soon over
        holder = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        os.ftruncate(own, 0)
        os.pwrite(own, json.dumps(holder).encode(), 0)
        without = (
            f"the file system of {store} has no locks: a second run of {owner} is not noticed, and nothing that killed "
            "runs left is removed; put the store where there are locks (--store)"
        )
        yield () if has_locks else (without,)


@contextmanager
def lock_exclusively(store: Path) -> Iterator[None]:
    """Locks a store that no run is at work on; a DataError names one that is."""
    with _opened(store, WHOLE_STORE) as whole:
        is_alone = _lock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_alone is None:
            raise DataError(
                f"the file system of {store} has no locks, so nobody can tell whether a run is at work there: nothing "
                "is removed; put the store where there are locks (--store)"
            )
        if not is_alone:
            work = "a run is at work"
            for name in sorted(path.name for path in (store / FOLDER).iterdir() if path.name != WHOLE_STORE):
                with _opened(store, name) as own:
                    if _lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB) is False:
                        work = f"{name} is at work ({_holder(own)})"
                        break
            raise DataError(f"{store} is in use: {work}; wait for it to end")
        yield


def temporary_files(store: Path) -> list[Path]:
    """Lists what is being written, or was by a run that was killed."""
    return [path for pattern in TEMPORARY for path in store.glob(pattern)]


@contextmanager
def _opened(store: Path, name: str) -> Iterator[int]:
    path = store / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, FLAGS, 0o644)
    except OSError as error:
        raise _not_lockable(path, "a link" if path.is_symlink() else str(error.strerror)) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_lockable(path, "no plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def _not_lockable(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be locked ({reason}); remove it, or name a store of your own by --store")


def _lock(descriptor: int, operation: int) -> bool | None:
    """Tells whether a lock was taken; None where the file system has none."""
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _holder(descriptor: int) -> str:
    try:
        holder = parse_json(os.pread(descriptor, 4096, 0))
        return one_line(f"process {holder['pid']} on {holder['host']}, since {holder['since']}", 200)
    except (ValueError, KeyError, TypeError):
        return "it has just begun"
