"""Faces on disk: what was written is read back, by us and by the `datasets` library."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.artifacts import faces
from fer_pipeline.core.errors import DataError

CLASSES = ("anger", "happiness", "neutral")


def picture(seed: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def rows(numbers: range, size: int = 16) -> pa.Table:
    columns = {
        "face_id": [f"set/{number}" for number in numbers],
        "image": [{"bytes": faces.encode(picture(number, size), format="png"), "path": None} for number in numbers],
        "label": [None if number == 1 else number % 3 for number in numbers],
        "subject": [None if number == 1 else "s" for number in numbers],
        "split": ["train" for _ in numbers],
        "landmarks": [[float(number)] * 10 for number in numbers],
        "score": [0.5 for _ in numbers],
        "source": [f"{number}.png" for number in numbers],
    }
    return pa.table(columns, schema=faces.face_schema(CLASSES, crop=size, border="constant"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    faces.write_shard(tmp_path / "split" / "part-00001.parquet", rows(range(3, 250)))
    faces.write_shard(tmp_path / "split" / "part-00000.parquet", rows(range(3)))
    return tmp_path / "split"


def test_faces_come_back_in_shard_order(folder: Path) -> None:
    read = faces.read_faces(folder)
    assert list(read.face_id) == [f"set/{number}" for number in range(250)]
    assert read.classes == CLASSES
    assert np.array_equal(read.images, np.stack([picture(number) for number in range(250)]))
    assert read.labels.tolist() == [-1 if number == 1 else number % 3 for number in range(250)]
    assert read.subjects[:3].tolist() == ["s", "", "s"]


def test_batches_are_the_whole_in_parts(folder: Path) -> None:
    batches = list(faces.iter_faces(folder, 64))
    assert max(map(len, batches)) <= 64
    assert np.array_equal(faces.join_faces(batches).images, faces.read_faces(folder).images)


def test_metadata_and_row_groups(folder: Path) -> None:
    assert faces.read_about(folder) == {"border": "constant", "classes": list(CLASSES), "crop": 16}
    shard = pq.ParquetFile(folder / "part-00001.parquet")
    assert [shard.metadata.row_group(group).num_rows for group in range(3)] == [100, 100, 47]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        faces.write_shard(tmp_path / name, rows(range(20)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_pillow_reads_what_we_encode(format: str) -> None:
    image = np.kron(picture(0, 4), np.ones((8, 8, 1), np.uint8))
    encoded = faces.encode(image, format=format, quality=95)  # type: ignore[arg-type]
    with Image.open(io.BytesIO(encoded)) as opened:
        other = np.asarray(opened.convert("RGB")).astype(int)
    ours = faces.decode_one(encoded).astype(int)
    assert np.abs(ours - other).max() <= 2
    assert np.abs(ours - image).mean() <= (0 if format == "png" else 6)


def test_datasets_opens_the_shards(folder: Path, tmp_path: Path) -> None:
    import datasets

    opened = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    opened = opened["train"]
    assert opened.features["label"].names == list(CLASSES)
    assert isinstance(opened.features["image"], datasets.Image)
    assert np.array_equal(np.asarray(opened[7]["image"]), picture(7))


def test_damage_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards in .*; run the stage"):
        faces.shard_paths(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(DataError, match="no readable Parquet"):
        faces.read_about(tmp_path)


def test_crops_of_two_sizes_are_refused(tmp_path: Path) -> None:
    faces.write_shard(tmp_path / "part-00000.parquet", pa.concat_tables([rows(range(2)), rows(range(2, 4), size=20)]))
    with pytest.raises(DataError, match="different sizes"):
        faces.read_faces(tmp_path)
