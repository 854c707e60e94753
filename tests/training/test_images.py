"""Images in shards, read and decoded when wanted: the same pixels as all at once, bounded memory, faults by name."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.core.errors import DataError
from fer_pipeline.training.images import GIB, DecodedImages, MemoryBudget, ShardImages
from fer_pipeline.training.sets import read_images

CLASSES = ("anger", "happiness")
SIDE = 12
CPU = torch.device("cpu")


def picture(number: int, *, side: int = SIDE) -> bytes:
    image = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return faces.encode(image, format="jpeg" if number % 2 else "png")


def rows_of(numbers: range, *, encoded: Callable[[int], bytes] = picture) -> pa.Table:
    """Faces of which every seventh has no label."""
    columns = {
        "face_id": [f"f/{number}" for number in numbers],
        "image": [{"bytes": encoded(number), "path": None} for number in numbers],
        "label": [None if number % 7 == 6 else number % 2 for number in numbers],
        "subject": [f"p{number // 4}" if number % 3 else None for number in numbers],
        "split": ["train" for _ in numbers],
        "landmarks": [[0.0] * 10 for _ in numbers],
        "score": [1.0 for _ in numbers],
        "source": ["" for _ in numbers],
    }
    return pa.table(columns, schema=faces.face_schema(CLASSES, crop=SIDE))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of 250, 0 and 130 faces: row groups of 100, 100, 50, none, 100 and 30."""
    for index, numbers in enumerate((range(250), range(250, 250), range(250, 380))):
        faces.write_shard(tmp_path / "faces" / f"part-{index:05d}.parquet", rows_of(numbers))
    return tmp_path / "faces"


def test_row_groups_are_those_of_the_footers(shards: Path) -> None:
    groups = ShardImages(faces.shard_paths(shards), keep=0, threads=1)
    assert groups.rows == 380
    assert groups.encoded_bytes == pytest.approx(sum(len(picture(number)) + 4 for number in range(380)), rel=0.02)
    blocks = groups.containing(np.arange(380))
    counts = [int((blocks == block).sum()) for block in np.unique(blocks)]
    assert counts == [100, 100, 50, 100, 30]


@pytest.mark.parametrize("memory", [0, GIB])
def test_a_set_is_the_same_wherever_its_images_lie(shards: Path, memory: int) -> None:
    images = read_images(shards, classes=CLASSES, budget=MemoryBudget(CPU, memory, threads=2))
    assert isinstance(images.images, DecodedImages if memory else ShardImages)
    whole = faces.read_faces(shards)
    labelled = np.flatnonzero(whole.labels >= 0)
    assert images.face_id.tolist() == whole.face_id[labelled].tolist()
    assert images.subjects.tolist() == whole.subjects[labelled].tolist()
    assert images.labels.tolist() == whole.labels[labelled].tolist()
    assert np.array_equal(images.all_pixels().numpy(), whole.images[labelled])
    some = np.random.default_rng(0).choice(len(images), 64)
    assert np.array_equal(images.pixels(some).numpy(), whole.images[labelled[some]])
    assert np.unique(images.blocks, return_counts=True)[1].sum() == len(labelled)
    everywhere = read_images(shards, classes=CLASSES, budget=MemoryBudget(CPU, GIB - memory))
    assert everywhere.blocks.tolist() == images.blocks.tolist(), "the order must not depend on the memory"


@pytest.mark.parametrize("keep", [0, 20_000, GIB])
def test_no_more_is_kept_than_is_given(shards: Path, keep: int, monkeypatch) -> None:
    images = ShardImages(faces.shard_paths(shards), keep=keep, threads=1)
    original, read = images._open, []
    monkeypatch.setattr(images, "_open", lambda shard: read.append(shard) or original(shard))
    for _ in range(3):
        for block in range(0, 380, 10):
            images.take(np.arange(block, block + 10))
            assert images._bytes_in_memory <= max(keep, 100 * 1000)
    assert images.keeps_all == (keep == GIB)
    assert len(read) == (5 if images.keeps_all else 15), "in turn every row group is read once a turn at most"


def test_what_an_order_comes_back_to_is_kept_whatever_was_given(shards: Path) -> None:
    images = ShardImages(faces.shard_paths(shards), keep=0, threads=1)
    images.keep_at_least(380)
    assert images.keeps_all


def test_many_threads_get_the_same_pixels(shards: Path) -> None:
    images = ShardImages(faces.shard_paths(shards), keep=10_000, threads=4)
    whole = faces.read_faces(shards).images
    draws = [np.random.default_rng(seed).choice(380, 40) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(draws, pool.map(images.take, draws), strict=True):
            assert np.array_equal(found.numpy(), whole[rows])


@pytest.mark.parametrize("memory", [0, GIB])
@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (lambda n: picture(n, side=8 if n == 7 else SIDE), r"different sizes .*\(8, 8, 3\).* in .*part-00001.parquet"),
        (lambda n: picture(n)[:60] if n == 7 else picture(n), r"part-00001.parquet, row 7 holds no readable picture"),
        (lambda n: b"" if n == 8 else picture(n), r"part-00001.parquet, row 8 holds no readable picture"),
    ],
)
def test_a_broken_or_odd_picture_is_named(tmp_path: Path, memory: int, encoded, words: str) -> None:
    faces.write_shard(tmp_path / "part-00000.parquet", rows_of(range(10, 40)))
    faces.write_shard(tmp_path / "part-00001.parquet", rows_of(range(20), encoded=encoded))
    with pytest.raises(DataError, match=rf"^[^\n]*{words}[^\n]*; [^\n]*rerun[^\n]*$"):
        read_images(tmp_path, classes=CLASSES, budget=MemoryBudget(CPU, memory)).all_pixels()
