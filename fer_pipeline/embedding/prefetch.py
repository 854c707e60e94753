"""Decode the crops of a shard of faces in batches, ahead of their use by threads.

Who computes on a CPU decodes in turn, since a second thread would only take its core away. Who feeds a GPU decodes in
many: libjpeg-turbo works without Python's lock. Memory is bounded by a few batches, whatever the shard holds.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from fer_pipeline.artifacts.faces import decode_one, iter_encoded, stack_images
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.prefetch import prefetch

AHEAD = 3  # batches
PIECE = 32  # images that a thread decodes at a time: small, or the first batch of a shard waits for one thread

Batch = tuple[pa.StringArray, UInt8[np.ndarray, "n h w 3"]]
Piece = tuple[pa.StringArray, Sequence[memoryview]]


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
    images = []
    for face_id, encoded in zip(*piece, strict=True):
        try:
            images.append(decode_one(encoded))
        except (ValueError, OSError) as error:
            raise DataError(f"the crop of {face_id} is no picture ({error}); rerun align") from None
    return images
