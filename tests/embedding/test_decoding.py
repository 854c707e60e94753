"""Decoded batches: every face once, in order and in whole batches, whoever decodes them."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts import faces
from fer_pipeline.core.errors import DataError
from fer_pipeline.embedding.shards import AHEAD, PIECE, decoded_batches

ROWS = 3 * faces.ROWS_PER_GROUP + 17


def picture(number: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def write(path: Path, encoded: list[bytes]) -> Path:
    rows = [
        {
            "face_id": f"street/{number}",
            "image": {"bytes": item, "path": None},
            "split": "train",
            "landmarks": [0.0] * 10,
            "score": 1.0,
            "source": "",
        }
        for number, item in enumerate(encoded)
    ]
    faces.write_shard(path, pa.Table.from_pylist(rows, schema=faces.face_schema(("anger", "fear"), crop=8)))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write(tmp_path / "part-00000.parquet", [faces.encode(picture(n), format="png") for n in range(ROWS)])


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [7, faces.ROWS_PER_GROUP, 256, 1000])
def test_batches_are_the_shard_in_order(shard: Path, threads: int, batch_size: int) -> None:
    batches = list(decoded_batches(shard, batch_size, threads=threads))
    assert [len(images) for _, images in batches] == [
        min(batch_size, ROWS - start) for start in range(0, ROWS, batch_size)
    ]
    assert [name for face_id, _ in batches for name in face_id.to_pylist()] == [f"street/{n}" for n in range(ROWS)]
    np.testing.assert_array_equal(
        np.concatenate([images for _, images in batches]), np.stack([picture(n) for n in range(ROWS)])
    )


@pytest.mark.parametrize("threads", [0, 2])
def test_what_is_no_picture_is_named(tmp_path: Path, threads: int) -> None:
    encoded = [faces.encode(picture(n)) for n in range(120)]
    encoded[110] = b"\xff\xd8 cut short"
    path = write(tmp_path / "part-00000.parquet", encoded)
    with pytest.raises(DataError, match=r"the crop of street/110 is no picture \(.*\); rerun align"):
        list(decoded_batches(path, 50, threads=threads))
    encoded[110] = b"nor is this"
    with pytest.raises(DataError, match="street/110"):
        list(decoded_batches(write(path, encoded), 50, threads=threads))


@pytest.mark.parametrize("threads", [0, 2])
def test_two_sizes_are_refused_whoever_decodes_them(tmp_path: Path, threads: int) -> None:
    encoded = [faces.encode(picture(n, 8 if n < PIECE else 16)) for n in range(2 * PIECE)]
    path = write(tmp_path / "part-00000.parquet", encoded)
    with pytest.raises(DataError, match="different sizes"):
        list(decoded_batches(path, 2 * PIECE, threads=threads))


def test_threads_decode_only_so_far_ahead_and_end_with_the_reader(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fer_pipeline.embedding import shards

    read = 0
    real = shards.iter_encoded

    def counted(*arguments):
        nonlocal read
        for batch in real(*arguments):
            read += 1
            yield batch

    monkeypatch.setattr(shards, "iter_encoded", counted)
    batches = decoded_batches(shard, 10, threads=2)
    next(batches)
    assert read == AHEAD + 1
    next(batches)
    assert read == AHEAD + 2
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
