"""What the engine moves about: a job (one shard to be made) in, what became of it out, on any backend."""

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fer_pipeline.artifacts.store import Origin, Store
from fer_pipeline.core.errors import PipelineError

T = TypeVar("T")

DIED = "the process that made it died (out of memory?)"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Job(Generic[T]):
    """One shard to be made.

    `key` is its fingerprint in the store, `name` its name in messages, `items` how many pictures or faces it holds,
    `payload` what the maker needs (picklable); `folder` tells that the shard is a folder of files.
    """

    key: str
    name: str
    items: int
    payload: T
    folder: bool = False


Advance = Callable[[int], None]
Maker = Callable[[Job[Any], Path, Advance], None]  # fills the path (or the empty folder) with the shard
Begin = Callable[[str], Maker]  # called once in each worker with its device ("cpu", "cuda:0"); loads the model


@dataclass(frozen=True)
class Work:
    """All that one stage makes of one set.

    `part(job, items, folder)` is a job of the first items of another, for an estimate; files that it needs go into
    `folder`.
    """

    jobs: Iterable[Job[Any]]
    begin: Begin
    part: Callable[[Job[Any], int, Path], Job[Any]]
    unit: str
    total: int


@dataclass(frozen=True)
class Result:
    """How one attempt ended: the line of its fault or None; `full` where the disk had no room for the shard."""

    fault: str | None
    seconds: float
    full: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job[Any]
    fault: str | None
    seconds: float
    full: bool = False


def attempt(job: Job[Any], maker: Maker, *, store: Store, device: str, advance: Advance) -> Result:
    """Makes one shard in the store; a fault becomes a line, since it must not cost the other shards.

    However it ends, `advance` is called with `job.items` in all.
    """
    told = 0

    def counted(items: int) -> None:
        nonlocal told
        told += items
        advance(items)

    started = time.monotonic()
    fault, full = None, False
    try:
        origin = Origin(items=job.items, device=device)
        make = store.make_folder if job.folder else store.make
        make(job.key, lambda path: maker(job, path, counted), origin=origin)
    except Exception as error:  # whatever one shard's data does to its maker, the others are made
        fault, full = line_of(error), isinstance(error, OSError) and error.errno in FULL
    if told != job.items:
        advance(job.items - told)
    return Result(fault, time.monotonic() - started, full)


def line_of(error: Exception) -> str:
    """A fault in one line; ours speak for themselves, others with their type."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror}"
    text = " ".join(str(error).split())
    return text if isinstance(error, PipelineError) else f"{type(error).__name__}: {text}"
