"""A number of rows in, shards of embeddings as `embed` writes them out, with classes whose margins vary.

A face is its class's centre, times a strength of its own, plus noise, in half precision. Faces of little strength lie
between the classes, so their margins are small. Every shard has a seed of its own: memory is a few record batches.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from benchmarks.pools.folder import begin
from fer_pipeline.artifacts.embeddings import write_embeddings
from fer_pipeline.core.files import replacing
from fer_pipeline.core.seeds import derive

CLASSES = 7
SHARD_ROWS = 10_000
BATCH_ROWS = 256  # of a record batch: what `embed` writes with its default batch size
BYTES_BESIDE = 24  # of a row: its identifier and its place


def write_pool(
    folder: Path,
    *,
    rows: int,
    dimensions: int,
    seed: int,
    advance: Callable[[int], None],
    shard_rows: int = SHARD_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> None:
    """Writes `part-*.arrow` into a new folder."""
    starts = range(0, rows, shard_rows)
    files = [f"part-{number:05d}.arrow" for number in range(len(starts))]
    needed = rows * (2 * dimensions + BYTES_BESIDE)
    begin(folder, files=files, needed=needed, kind="embeddings", rows=rows, dimensions=dimensions, seed=seed)
    centres = class_centres(dimensions, seed=seed).astype(np.float32)
    for number, start in enumerate(starts):
        size = min(shard_rows, rows - start)
        batches = drawn(centres, start, size, batch_rows, seed=derive(seed, "shard", number))
        with replacing(folder / files[number]) as temporary:
            write_embeddings(temporary, batches, dimensions=dimensions, model="generated", shard=files[number])
        advance(size)


def class_centres(dimensions: int, *, seed: int) -> Float64[np.ndarray, "c d"]:
    """One centre a class, around what all have in common: features of networks point in one direction mostly."""
    rng = np.random.default_rng(derive(seed, "centres"))
    return 0.7 * rng.standard_normal(dimensions) + 0.5 * rng.standard_normal((CLASSES, dimensions))


def drawn(
    centres: Float32[np.ndarray, "c d"], start: int, rows: int, batch_rows: int, *, seed: int
) -> Iterator[tuple[pa.StringArray, Float32[np.ndarray, "_ d"]]]:
    """The record batches of one shard; `start` is the number of its first face."""
    rng = np.random.default_rng(seed)
    for first in range(0, rows, batch_rows):
        size = min(batch_rows, rows - first)
        strength = rng.random((size, 1), np.float32)
        vectors = rng.standard_normal((size, centres.shape[1]), np.float32)
        vectors += strength * centres[rng.integers(0, len(centres), size)] + (1 - strength) * centres.mean(axis=0)
        names = [f"pool/{number:09d}" for number in range(start + first, start + first + size)]
        yield pa.array(names, pa.string()), vectors
