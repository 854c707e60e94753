"""A shard of faces in, its identifiers and decoded crops out in batches, decoded ahead of their use by threads.

Who computes on a CPU decodes in turn, since a second thread would only take its core away. Who feeds a GPU decodes in
many: libjpeg-turbo works without Python's lock. Memory is bounded by a few batches, whatever the shard holds.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from fer_pipeline.artifacts.faces import decode_one, iter_encoded, stacked
from fer_pipeline.core.errors import DataError

AHEAD = 3  # batches
PIECE = 32  # pictures that a thread decodes at a time: small, or the first batch of a shard waits for one thread

Batch = tuple[pa.StringArray, UInt8[np.ndarray, "n h w 3"]]


def decoded_batches(shard: Path, batch_size: int, *, threads: int) -> Iterator[Batch]:
    """Batches of `batch_size` faces in order, the last one smaller; without threads each is decoded when it is due."""
    batches = iter_encoded(shard, batch_size)
    if threads == 0:
        for face_id, encoded in batches:
            yield face_id, stacked(decode_piece(face_id, encoded))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[pa.StringArray, list[Future]]] = deque()
    try:
        for face_id, encoded in batches:
            pieces = [slice(start, start + PIECE) for start in range(0, len(encoded), PIECE)]
            waiting.append((face_id, [pool.submit(decode_piece, face_id[piece], encoded[piece]) for piece in pieces]))
            if len(waiting) > AHEAD:
                yield _joined(*waiting.popleft())
        while waiting:
            yield _joined(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def decode_piece(face_id: pa.StringArray, encoded: Sequence[memoryview]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Some crops; one that is no picture is a DataError that names its face."""
    images = []
    for number, item in enumerate(encoded):
        try:
            images.append(decode_one(item))
        except (ValueError, OSError) as error:
            raise DataError(f"the crop of {face_id[number]} is no picture ({error}); rerun align") from None
    return images


def _joined(face_id: pa.StringArray, pieces: list[Future]) -> Batch:
    return face_id, stacked([image for piece in pieces for image in piece.result()])
