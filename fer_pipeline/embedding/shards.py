"""Embed shards of faces: check that a shard fits the checkpoint, and write the shard of its features.

A worker process loads the network once and then embeds shard after shard (see `sharding.jobs`).
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from fer_pipeline.artifacts.arrow import schema_metadata
from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.faces import open_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.heap import keep_freed_memory
from fer_pipeline.embedding.features import Extractor
from fer_pipeline.embedding.prefetch import decoded_batches
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.sharding.jobs import Advance, Job, Maker

MAX_DECODERS = 16  # threads for one GPU; more only wait for Python's lock


@dataclass(frozen=True)
class FacesShard:
    """The header of a shard of faces; `rows` is 0 and `classes` empty where it cannot be read."""

    path: Path
    rows: int = 0
    classes: tuple[str, ...] = ()
    crop: int | None = None  # pixels

    @classmethod
    def read(cls, path: Path) -> "FacesShard":
        """Reads the header; nothing is known of a damaged shard, which its worker will report."""
        try:
            shard = open_shard(path)
        except DataError:
            return cls(path)
        metadata = schema_metadata(shard.schema_arrow)
        return cls(path, shard.metadata.num_rows, tuple(metadata.get("classes", ())), metadata.get("crop"))


@dataclass(frozen=True)
class EmbedOptions:
    """What all shards of a run share; `weights` is the hash of the checkpoint's weights.

    `extractor` holds options of `Extractor`. The shards must hold these `classes`, unless None, and crops of `crop` px.
    """

    model: Path
    weights: str
    extractor: Mapping[str, Any]
    classes: tuple[str, ...] | None = None
    crop: int | None = None


def make_embedder(options: EmbedOptions, device: str) -> Maker:
    """Loads the network in a worker and returns the function that embeds a shard with it."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    extractor = Extractor(load_checkpoint(options.model, device=device), **options.extractor)

    def embed(job: Job[Path], path: Path, advance: Advance) -> None:
        check_shard(job.payload, options)
        write_shard(job, path, advance, extractor=extractor, weights=options.weights)

    return embed


def check_shard(path: Path, options: EmbedOptions) -> None:
    """Refuses a shard of other columns, classes or crops than the set's, whose features would mean nothing."""
    if options.classes is None:
        return
    schema, shard = open_shard(path).schema_arrow, FacesShard.read(path)
    if missing := sorted({"face_id", "image"} - set(schema.names)):
        raise DataError(f"{path} has no column {' and '.join(missing)}: it is no shard of faces; rerun align")
    if shard.classes != options.classes:
        classes = ", ".join(shard.classes) or "none"
        raise DataError(f"{path} holds the classes {classes}, expected {', '.join(options.classes)}; rerun align")
    if shard.crop != options.crop:
        raise DataError(f"{path} holds crops of {shard.crop} px, the other shards of {options.crop} px; rerun align")


def write_shard(job: Job[Path], path: Path, advance: Advance, *, extractor: Extractor, weights: str) -> None:
    """Writes the features of one shard of faces in its order, batch by batch."""
    waiting: deque[pa.StringArray] = deque()  # identifiers of batches whose features are still to come

    def crops() -> Iterator[UInt8[np.ndarray, "_ _ _ 3"]]:
        threads = num_decoders(extractor.device)
        for face_id, images in decoded_batches(job.payload, extractor.batch_size, threads=threads):
            waiting.append(face_id)
            yield images

    def rows() -> Iterator[tuple[pa.StringArray, np.ndarray]]:
        for features in extractor.stream(crops()):
            yield waiting.popleft(), features
            advance(len(features))

    write_embeddings(path, rows(), dimensions=extractor.dimensions, model=weights, shard=job.name)


def num_decoders(device: torch.device) -> int:
    """Returns how many threads decode for a device: this worker's share of the cores for a GPU, none for a CPU."""
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_DECODERS, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))
