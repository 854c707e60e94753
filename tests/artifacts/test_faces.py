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
    assert np.array_equal(np.concatenate([batch.images for batch in batches]), faces.read_faces(folder).images)


def test_metadata_and_row_groups(folder: Path) -> None:
    assert faces.read_metadata(folder) == {"border": "constant", "classes": list(CLASSES), "crop": 16}
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
        faces.read_metadata(tmp_path)


def test_crops_of_two_sizes_are_refused(tmp_path: Path) -> None:
    faces.write_shard(tmp_path / "part-00000.parquet", pa.concat_tables([rows(range(2)), rows(range(2, 4), size=20)]))
    with pytest.raises(DataError, match="different sizes"):
        faces.read_faces(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 64, 100, 256])
def test_encoded_batches_are_full_whatever_the_row_groups(folder: Path, batch_size: int) -> None:
    path = folder / "part-00001.parquet"
    batches = list(faces.iter_encoded(path, batch_size))
    assert [len(images) for _, images in batches] == [min(batch_size, 247 - n) for n in range(0, 247, batch_size)]
    assert all(len(face_id) == len(images) for face_id, images in batches)
    assert [name for face_id, _ in batches for name in face_id.to_pylist()] == [f"set/{n}" for n in range(3, 250)]
    truth = pq.read_table(path).column("image").to_pylist()
    assert [bytes(image) for _, images in batches for image in images] == [row["bytes"] for row in truth]


def test_reading_holds_a_batch_and_a_row_group_of_pictures(tmp_path: Path) -> None:
    """However many faces a shard has: counted by Arrow's own pool, whose memory the views look into."""
    size, count, batch_size = 5000, 3000, 64
    bytes_ = np.random.default_rng(0).bytes(size * 10)
    table = rows(range(count), 4)
    images = [{"bytes": bytes_[n % 9 * size : (n % 9 + 1) * size], "path": None} for n in range(count)]
    column = pa.array(images, table.schema.field("image").type)
    faces.write_shard(tmp_path / "part-00000.parquet", table.set_column(1, table.schema.field("image"), column))
    del table, images, column
    before, most, read = pa.total_allocated_bytes(), 0, 0
    for _, encoded in faces.iter_encoded(tmp_path / "part-00000.parquet", batch_size):
        most, read = max(most, pa.total_allocated_bytes() - before), read + sum(map(len, encoded))
    assert read == size * count
    assert most < 4 * size * (batch_size + faces.ROWS_PER_GROUP)


def test_a_shard_of_something_else_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"face_id": ["a"], "label": [1]}), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match=r"part-00000\.parquet has no column image; found face_id, label; remove it"):
        list(faces.iter_encoded(tmp_path / "part-00000.parquet", 4))


def test_a_shard_damaged_inside_is_one_line(folder: Path) -> None:
    path = folder / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    data[start : start + 64] = bytes(64)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"part-00001\.parquet is no readable Parquet shard") as raised:
        list(faces.iter_encoded(path, 64))
    assert "\n" not in str(raised.value)


def test_shards_without_faces_are_none(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    faces.write_shard(path, rows(range(0)))
    assert list(faces.iter_encoded(path, 4)) == []
    assert (len(faces.read_faces(tmp_path)), faces.read_faces(tmp_path).classes) == (0, CLASSES)
    faces.write_shard(tmp_path / "part-00001.parquet", rows(range(2)))
    assert faces.read_faces(tmp_path).face_id.tolist() == ["set/0", "set/1"]


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("face_id", [None, "b", "c"], "has no face_id in 1 of 3 rows"),
        ("face_id", [1, 2, 3], "column face_id has int64, expected string"),
        ("image", [None] * 3, "column image has null, expected struct"),
        ("image", [b"1", b"2", b"3"], "column image has binary, expected struct"),
        (
            "image",
            [{"bytes": b"no picture", "path": None}] * 3,
            "the crop of .*, set/0 is no picture",
        ),
        ("image", [{"bytes": None, "path": "x"}] * 3, "column image has struct<bytes: null"),
        ("label", [0, 1, 3], "has the label 3, expected a number from 0 to 2"),
        ("label", [0, 1, -2], "has the label -2, expected a number from 0 to 2"),
        ("label", [2**62] * 3, f"has the label {2**62}, expected"),
        ("label", [0.5] * 3, "column label has double, expected int64"),
        ("label", ["anger"] * 3, "column label has string, expected int64"),
        ("subject", [7] * 3, "column subject has int64, expected string"),
    ],
)
def test_a_wrong_column_is_one_line(tmp_path: Path, name: str, values: list[object], told: str) -> None:
    right = rows(range(3))
    place = right.column_names.index(name)
    pq.write_table(right.set_column(place, name, pa.array(values)), tmp_path / "part-00000.parquet")
    with pytest.raises(DataError, match=told) as raised:
        faces.read_faces(tmp_path)
    assert str(raised.value).isprintable()


def test_a_column_less_or_more_is_one_line(tmp_path: Path) -> None:
    right = rows(range(3))
    for table, told in (
        (right.drop_columns(["label"]), "has no column label; found face_id, image, subject, split"),
        (right.append_column("subject", right["subject"]), "has 2 columns subject"),
    ):
        pq.write_table(table, tmp_path / "part-00000.parquet")
        with pytest.raises(DataError, match=told):
            faces.read_faces(tmp_path)
        with pytest.raises(DataError, match=told):
            faces.read_table(tmp_path, ["face_id", "label", "subject"])


def test_a_picture_of_too_many_pixels_is_none(tmp_path: Path) -> None:
    """A few kilobytes that stand for a hundred megabytes."""
    stream = io.BytesIO()
    Image.new("L", (6000, 6000)).save(stream, "PNG")
    with pytest.raises(ValueError, match="6000 x 6000 pixels, more than any crop has"):
        faces.decode_one(stream.getvalue())
    drawing = io.BytesIO()
    Image.new("RGB", (9, 9)).save(drawing, "EPS")  # to decode which Pillow starts a program
    for encoded in (drawing.getvalue(), b"", b"\xff\xd8", b"\xff\xd8" + bytes(2**17), b"\x89PNG\r\n\x1a\n" + bytes(50)):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            faces.decode_one(encoded)
