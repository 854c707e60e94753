"""Score shards of embeddings with an engine and write shards of scores, in memory that does not grow.

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

from fer_pipeline.artifacts.embeddings import Block, stream_embeddings
from fer_pipeline.artifacts.scores import score_batch, write_scores
from fer_pipeline.core.errors import DataError
from fer_pipeline.scoring.engines import Engine, without_direction

BLOCK = 2**25  # bytes of features that are mapped into memory at a time

LabelledBlock = tuple[Block, Int64[np.ndarray, " _"] | None]


@dataclass(frozen=True)
class FaceCounts:
    """Faces that were scored, and how many of them have a zero feature."""

    faces: int = 0
    no_direction: int = 0

    def __add__(self, other: "FaceCounts") -> "FaceCounts":
        return FaceCounts(self.faces + other.faces, self.no_direction + other.no_direction)


def score_shards(
    shards: Sequence[Path], *, out: Path, schema: pa.Schema, engine: Engine, dimensions: int, workers: int
) -> Iterator[FaceCounts]:
    """Writes the scores of every shard into `out` under its own name and yields its counts, in order."""
    rows = max(1, BLOCK // (2 * dimensions))

    def score_shard(shard: Path) -> FaceCounts:
        blocks = ((block, None) for block in stream_embeddings(shard, rows=rows))
        return score_blocks(out / shard.name, schema, blocks, engine=engine, source=shard)

    with ThreadPoolExecutor(workers if engine.parallel else 1) as threads:
        yield from threads.map(score_shard, shards)


def score_blocks(
    path: Path, schema: pa.Schema, blocks: Iterable[LabelledBlock], *, engine: Engine, source: Path
) -> FaceCounts:
    """Writes the scores of blocks of faces, with their labels if there are any, and returns their counts.

    A feature that is not finite has no cosine and is a DataError that names `source`.
    """
    total = FaceCounts()

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal total
        for (block, label), scores in engine.stream((pair, pair[0].parts) for pair in blocks):
            if bad := int(np.isnan(scores.margin).sum()):
                raise DataError(f"{source} has {bad:,} faces with NaN or infinite features; remove it and rerun embed")
            total += FaceCounts(len(scores.margin), int(without_direction(scores.cosine).sum()))
            face_id = block.face_id.combine_chunks()
            yield score_batch(schema, face_id=face_id, label=label, **vars(scores))

    write_scores(path, schema, rows())
    return total
