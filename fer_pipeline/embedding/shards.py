"""Embed shards of faces: check that a shard fits the checkpoint, and write the shard of its features.

A worker process loads the network once and then embeds shard after shard (see `sharding.jobs`). Who computes on a CPU
decodes crops in turn, since a second thread would only take its core away. Who feeds a GPU decodes in many threads:
libjpeg-turbo works without Python's lock. Memory is bounded by a few batches, whatever the shard holds.
"""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.artifacts.faces import decode_crop, iter_encoded, open_shard, stack_images
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.heap import keep_freed_memory
from fer_pipeline.core.prefetch import prefetch
from fer_pipeline.embedding.features import Extractor
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.sharding.jobs import Advance, Job, Maker

MAX_DECODERS = 16  # threads for one GPU; more only wait for Python's lock
AHEAD = 3  # batches that are decoded before they are due
PIECE = 32  # images that a thread decodes at a time: small, or the first batch of a shard waits for one thread

Batch = tuple[pa.StringArray, UInt8[np.ndarray, "n h w 3"]]
Piece = tuple[pa.StringArray, Sequence[memoryview]]


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
            about = shard.about
        except DataError:
            return cls(path)
        return cls(path, shard.metadata.num_rows, tuple(about.get("classes", ())), about.get("crop"))


@dataclass(frozen=True)
class EmbedOptions:
    """What all shards of a run share; `weights` is the hash of the checkpoint's weights (`features_id`).

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
    opened, shard = open_shard(path), FacesShard.read(path)
    opened.require(["face_id", "image"])
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


def decoded_batches(shard: Path, batch_size: int, *, threads: int) -> Iterator[Batch]:
    """Yields identifiers and crops of `batch_size` faces in order, the last batch smaller.

    Without threads each batch is decoded when it is due.
    """
    coming: deque[tuple[pa.StringArray, int]] = deque()  # the identifiers and the number of pieces of batches

    def pieces() -> Iterator[Piece]:
        for face_id, encoded in iter_encoded(shard, batch_size):
            starts = range(0, len(encoded), PIECE)
            coming.append((face_id, len(starts)))
            yield from ((face_id[start : start + PIECE], encoded[start : start + PIECE]) for start in starts)

    ahead = AHEAD * -(-batch_size // PIECE)
    with closing(prefetch(decode_piece, pieces(), threads=threads, ahead=ahead)) as decoded:
        for first in decoded:
            face_id, count = coming.popleft()
            yield face_id, stack_images([*first, *(image for _ in range(count - 1) for image in next(decoded))])


def decode_piece(piece: Piece) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Decodes some crops; one that is no image is a DataError that names its face."""
    return [decode_crop(encoded, str(face_id)) for face_id, encoded in zip(*piece, strict=True)]
