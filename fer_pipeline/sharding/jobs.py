"""Define a job (one shard to make), its outcome, and the attempt to make it, on any backend."""

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from fer_pipeline.artifacts.store import Origin, Store
from fer_pipeline.core.errors import PipelineError

T = TypeVar("T")

WORKER_DIED = "the process that made it died (out of memory?)"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Job(Generic[T]):
    """One shard to make.

    `key` is its fingerprint in the store, `name` its name in messages, `items` how many images or faces it holds,
    `payload` what the maker needs (picklable); `folder` tells that the shard is a folder of files.
    """

    key: str
    name: str
    items: int
    payload: T
    folder: bool = False


Advance = Callable[[int], None]
Maker = Callable[[Job[Any], Path, Advance], None]  # fills the path (or the empty folder) with the shard
Setup = Callable[[str], Maker]  # called once in each worker with its device ("cpu", "cuda:0"); loads the model


@dataclass(frozen=True)
class Work:
    """All shards that one stage makes of one set.

    `part(job, items, folder)` is a job of the first items of another, for an estimate; files that it needs go into
    `folder`. `total` counts items, named by `unit`.
    """

    jobs: Iterable[Job[Any]]
    setup: Setup
    part: Callable[[Job[Any], int, Path], Job[Any]]
    unit: str
    total: int


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the line of its fault or None; `full` where the disk had no space for the shard."""

    job: Job[Any]
    fault: str | None
    seconds: float
    full: bool = False

    @property
    def line(self) -> str:
        """The fault, which names its job."""
        fault = self.fault or ""
        return fault if self.job.name in fault else f"{self.job.name}: {fault}"


def attempt(job: Job[Any], maker: Maker, *, store: Store, device: str, advance: Advance) -> Outcome:
    """Makes one shard in the store; an error becomes a line, since it must not cost the other shards.

    However it ends, `advance` is called with `job.items` in all. The outcome's job has no payload,
    which may be large, since it comes back from another process.
    """
    done = 0

    def count(items: int) -> None:
        nonlocal done
        done += items
        advance(items)

    started = time.monotonic()
    fault, full = None, False
    try:
        origin = Origin(items=job.items, device=device)
        store.make(job.key, lambda path: maker(job, path, count), origin=origin, folder=job.folder)
    except Exception as error:  # whatever one shard's data does to its maker, the others are made
        fault, full = " ".join(str(error).split()), False
        if isinstance(error, OSError) and error.errno is not None:
            fault, full = f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}", error.errno in DISK_FULL
        elif not isinstance(error, PipelineError):
            fault = f"{type(error).__name__}: {fault}"
    if done != job.items:
        advance(job.items - done)
    return Outcome(replace(job, payload=None), fault, time.monotonic() - started, full)
