"""Shards of embeddings and an engine in, shards of scores out, in one pass and in memory that does not grow.

Shards are walked by as many threads as there are workers where the engine gains by it. A face's scores depend on its
own feature alone, so neither blocks nor threads change a byte.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from fer_pipeline.artifacts.embeddings import Block, walk_embeddings
from fer_pipeline.artifacts.scores import score_batch, write_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.scoring.cosine import without_direction
from fer_pipeline.scoring.engines import Engine, Scored

BLOCK = 2**25  # bytes of features that are mapped into memory at a time

Labelled = tuple[Block, Int64[np.ndarray, " _"] | None]


@dataclass(frozen=True)
class Tally:
    """Faces that were scored, and how many of them have a zero feature."""

    faces: int = 0
    no_direction: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.faces + other.faces, self.no_direction + other.no_direction)


def score_shards(
    shards: Sequence[Path], *, out: Path, schema: pa.Schema, engine: Engine, dimensions: int, workers: int
) -> Iterator[Tally]:
    """Writes the scores of every shard into `out` under its own name; one tally a shard, in order."""
    rows = max(1, BLOCK // (2 * dimensions))

    def score_shard(shard: Path) -> Tally:
        blocks = ((block, None) for block in walk_embeddings(shard, rows=rows))
        return write_scored(out / shard.name, schema, blocks, engine=engine, source=shard)

    with ThreadPoolExecutor(workers if engine.parallel else 1) as threads:
        yield from threads.map(score_shard, shards)


def write_scored(path: Path, schema: pa.Schema, blocks: Iterable[Labelled], *, engine: Engine, source: Path) -> Tally:
    """Writes the scores of blocks of faces, with their labels if there are any."""
    tallies: list[Tally] = []

    def rows() -> Iterator[pa.RecordBatch]:
        beside = ((pair, pair[0].parts) for pair in blocks)
        for (block, label), found in engine.stream(beside):
            tallies.append(tally_of(found, source=source))
            yield score_batch(
                schema,
                face_id=block.face_id.combine_chunks(),
                cosine=found.cosine,
                nearest=found.nearest,
                margin=found.margin,
                label=label,
            )

    write_scores(path, schema, rows())
    return sum(tallies, Tally())


def tally_of(found: Scored, *, source: Path) -> Tally:
    """The counts of a block; a feature that is not finite has no cosine and is a DataError."""
    bad = int(np.isnan(found.margin).sum())
    if bad:
        raise DataError(f"{source} has {bad:,} faces with NaN or infinite features; remove it and rerun embed")
    return Tally(len(found.margin), int(without_direction(found.cosine).sum()))
