"""Shards of faces and a checkpoint in, shards of features in the store out, on one GPU or several processes.

On a CPU each worker process loads the network once and computes with one thread: two processes of one thread are many
times faster than one of two on a busy machine, and the bytes do not depend on the number of workers.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.faces import faces_of, open_shard
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.settings import Resources
from fer_pipeline.mining.features import Extractor
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.devices import resolve_device


@dataclass(frozen=True)
class Job:
    """One shard to be made: its key in the store, its faces, and its name in messages."""

    key: str
    faces: Path
    name: str


@dataclass(frozen=True)
class Plan:
    """What all jobs of a run share."""

    model: Path
    weights: str
    store: Path
    batch_size: int
    fuse: bool
    device: str


def embed_shards(
    jobs: Sequence[Job],
    *,
    model: Path,
    weights: str,
    store: Path,
    batch_size: int,
    fuse: bool,
    resources: Resources,
    advance: Callable[[int], None],
) -> list[str]:
    """Makes every shard and gives one line for each that failed."""
    device = resolve_device(resources.device)
    plan = Plan(model, weights, store, batch_size, fuse, str(device))
    workers = min(resources.workers, len(jobs)) if device.type == "cpu" else 1
    if workers > 1:
        return embed_in_processes(jobs, plan, workers=workers, advance=advance)
    if not jobs:
        return []
    with one_thread():
        extractor = load_extractor(plan)
        return [line for job in jobs if (line := attempt(job, plan, extractor, advance)) is not None]


def embed_in_processes(jobs: Sequence[Job], plan: Plan, *, workers: int, advance: Callable[[int], None]) -> list[str]:
    """The same by worker processes; where one dies, the shards that it left undone are reported."""
    failures: dict[str, str] = {}
    # A fork saves each worker the 4 s of importing torch, and is sound while workers keep to one thread and no GPU is
    # in use; elsewhere than on Linux the system's own libraries do not survive it.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(plan,)) as pool:
        waiting = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(waiting):
            job = waiting[future]
            try:
                rows, line = future.result()
            except BrokenProcessPool:
                rows, line = (
                    0,
                    f"{job.name}: a worker process died (out of memory?); rerun with fewer resources.workers",
                )
            advance(rows)
            if line is not None:
                failures[job.name] = line
    return [failures[job.name] for job in jobs if job.name in failures]


_worker: tuple[Plan, Extractor] | None = None


def start_worker(plan: Plan) -> None:
    """Loads the network once in a new process."""
    global _worker
    torch.set_num_threads(1)
    _worker = plan, load_extractor(plan)


def work(job: Job) -> tuple[int, str | None]:
    """One job in a worker process: rows done, and the line of its failure."""
    assert _worker is not None
    plan, extractor = _worker
    rows: list[int] = []
    line = attempt(job, plan, extractor, rows.append)
    return sum(rows), line


def load_extractor(plan: Plan) -> Extractor:
    """The network of a plan, on its device."""
    classifier = load_checkpoint(plan.model, device=plan.device)
    return Extractor(classifier, batch_size=plan.batch_size, fuse=plan.fuse)


def attempt(job: Job, plan: Plan, extractor: Extractor, advance: Callable[[int], None]) -> str | None:
    """Makes one shard; a fault of its data becomes a line, so that the other shards are still made."""
    try:
        Store(plan.store).make(job.key, partial(write_shard, job, plan, extractor, advance))
    except (PipelineError, pa.ArrowException, ValueError, OSError) as error:
        return str(error) if job.name in str(error) else f"{job.name}: {' '.join(str(error).split())}"
    return None


def write_shard(job: Job, plan: Plan, extractor: Extractor, advance: Callable[[int], None], path: Path) -> None:
    """The features of one shard of faces, batch by batch."""
    write_embeddings(
        path,
        features_of(job.faces, extractor, advance),
        dimensions=extractor.dimensions,
        model=plan.weights,
        shard=job.name,
    )


def features_of(
    faces: Path, extractor: Extractor, advance: Callable[[int], None]
) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Identifiers and features of a shard in its order."""
    for batch in open_shard(faces).iter_batches(extractor.batch_size, columns=["face_id", "image", "label", "subject"]):
        decoded = faces_of(batch, ())
        yield pa.array(decoded.face_id, pa.string()), extractor(decoded.images)
        advance(len(decoded))


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread, as in the workers, so that the bytes are theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
