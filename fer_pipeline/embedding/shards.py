"""A shard of faces and a checkpoint in, the shard of their features out; a worker loads the network once."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.core.heap import keep_freed_memory
from fer_pipeline.embedding.faces import check_faces
from fer_pipeline.embedding.features import Extractor, Precision
from fer_pipeline.embedding.prefetch import decoded_batches
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.sharding.jobs import Advance, Job, Maker

MOST_DECODERS = 16  # threads for one GPU; more only wait for Python's lock


@dataclass(frozen=True)
class Plan:
    """What all shards of a run share; `weights` is the hash of the checkpoint's weights.

    The shards must hold these `classes` and crops of `crop` pixels, where they are told.
    """

    model: Path
    weights: str
    batch_size: int
    fuse: bool
    precision: Precision = "float16"
    compile: bool = False
    classes: tuple[str, ...] | None = None
    crop: int | None = None


def begin(plan: Plan, device: str) -> Maker:
    """In a worker: the network, loaded once, and what makes a shard of features with it."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    extractor = Extractor(
        load_checkpoint(plan.model, device=device),
        batch_size=plan.batch_size,
        fuse=plan.fuse,
        precision=plan.precision,
        compile=plan.compile,
    )

    def make(job: Job[Path], path: Path, advance: Advance) -> None:
        if plan.classes is not None:
            check_faces(job.payload, classes=plan.classes, crop=plan.crop)
        write_shard(job, path, advance, extractor=extractor, weights=plan.weights)

    return make


def write_shard(job: Job[Path], path: Path, advance: Advance, *, extractor: Extractor, weights: str) -> None:
    """The features of one shard of faces, batch by batch."""
    write_embeddings(
        path,
        features_of(job.payload, extractor, advance),
        dimensions=extractor.dimensions,
        model=weights,
        shard=job.name,
    )


def features_of(faces: Path, extractor: Extractor, advance: Advance) -> Iterator[tuple[pa.StringArray, np.ndarray]]:
    """Identifiers and features of a shard in its order."""
    ahead: deque[pa.StringArray] = deque()  # of batches whose features are still to come

    def crops() -> Iterator[UInt8[np.ndarray, "_ _ _ 3"]]:
        for face_id, images in decoded_batches(faces, extractor.batch_size, threads=decoders(extractor.device)):
            ahead.append(face_id)
            yield images

    for features in extractor.stream(crops()):
        yield ahead.popleft(), features
        advance(len(features))


def decoders(device: torch.device) -> int:
    """How many threads decode for a device: this worker's share of the cores for a GPU, none for a CPU."""
    if device.type == "cpu":
        return 0
    return max(1, min(MOST_DECODERS, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))
