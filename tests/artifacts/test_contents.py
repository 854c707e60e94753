"""Equal crops are found by their hashes, whatever stands beside them, and no label is read."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts import contents
from fer_pipeline.artifacts.contents import SharedCounts, SplitContents, contents_path
from fer_pipeline.core.errors import DataError

Row = tuple[str, str, str | None, bytes]  # a face, its split, its person and its picture


def write(path: Path, *tables: list[Row]) -> Path:
    def table(rows: list[Row]) -> pa.Table:
        columns = [*zip(*rows, strict=True)]
        hashes = [hashlib.blake2b(image, digest_size=16).digest() for image in columns[3]]
        return pa.table([*columns[:3], hashes], schema=contents.CONTENTS)

    contents.write_contents(path, map(table, tables))
    return path


def test_a_shard_is_hashed_without_its_labels(tmp_path: Path) -> None:
    images = [b"one", b"two", b"one"]
    rows = {
        "face_id": ["a", "b", "c"],
        "image": [{"bytes": image, "path": None} for image in images],
        "split": ["test"] * 3,
        "subject": ["x", None, "y"],
    }
    pq.write_table(pa.table(rows), tmp_path / "part-00000.parquet", row_group_size=2)
    found = pa.Table.from_batches(contents.hash_faces(tmp_path / "part-00000.parquet"), contents.CONTENTS).to_pylist()
    expected = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
    assert [row["content"] for row in found] == expected
    assert [(row["face_id"], row["split"], row["subject"]) for row in found] == [
        ("a", "test", "x"),
        ("b", "test", None),
        ("c", "test", "y"),
    ]


def test_what_two_splits_share_by_hand(tmp_path: Path) -> None:
    """Faces are counted in the second split, as often as they stand there; names of nobody are nobody's."""
    path = write(
        tmp_path / "set.parquet",
        [("a", "train", "x", b"1"), ("b", "train", "y", b"2"), ("c", "test", "x", b"2"), ("d", "test", "", b"2")],
        [("e", "train", "", b"3"), ("f", "train", None, b"1"), ("g", "test", None, b"4"), ("h", "val", "y", b"1")],
    )
    train, test, val, none = (SplitContents([path], split) for split in ("train", "test", "val", "other"))
    assert contents.count_shared(train, test) == SharedCounts(persons=1, faces=2)
    assert contents.count_shared(test, train) == SharedCounts(persons=1, faces=1)
    assert contents.count_shared(train, val) == SharedCounts(persons=1, faces=1)
    assert contents.count_shared(train, none) == contents.count_shared(none, train) == SharedCounts(0, 0)


def test_faces_that_are_test_pictures_of_some_sets(tmp_path: Path) -> None:
    write(tmp_path / "one.parquet", [("one/a", "test", None, b"1"), ("one/b", "train", None, b"2")])
    write(tmp_path / "two.parquet", [("two/a", "test", None, b"3"), ("two/b", "test", None, b"3")])
    pool = write(tmp_path / "pool.parquet", [(f"pool/{i}", "train", None, str(i).encode()) for i in range(5)])
    for names, expected in {
        ("one",): ["pool/1"],
        ("one", "two"): ["pool/1", "pool/3"],
        ("nowhere",): [],
    }.items():
        assert contents.faces_with(pool, contents.read_split_contents(tmp_path, names, "test")).to_pylist() == expected


def test_repeated_contents_are_those_that_counting_finds(tmp_path: Path) -> None:
    """Over several sets, one split alone; null is no picture, and a last byte of 0 is one like another."""
    random = np.random.default_rng(4)
    sets = {
        name: [
            (
                f"{name}/{k}",
                "train" if k % 4 else "test",
                None,
                None if k == 5 else bytes([*random.integers(6, size=2), *bytes(14)]),
            )
            for k in range(number)
        ]
        for name, number in (("street", 50), ("none", 0), ("film", 30))
    }
    paths = {name: contents_path(tmp_path, name) for name in sets}
    for name, rows in sets.items():
        unknown = [(f"{name}/null/{k}", "train", None, None) for k in range(2)]
        columns = [*zip(*rows, *unknown, strict=True)]
        contents.write_contents(paths[name], [pa.table(columns, schema=contents.CONTENTS)])
    faces = [(name, row[0], row[3]) for name, rows in sets.items() for row in rows if row[1] == "train" and row[3]]
    counts = Counter(content for _, _, content in faces)
    found = [
        (name, face, number)
        for name, names, numbers in contents.iter_repeated(paths, "train")
        for face, number in zip(names.to_pylist(), numbers.tolist(), strict=True)
    ]
    twice = [(name, face) for name, face, content in faces if counts[content] > 1]
    assert [one[:2] for one in found] == twice
    content_of = {face: content for _, face, content in faces}
    assert len({(number, content_of[face]) for _, face, number in found}) == len(
        {content_of[face] for _, face in twice}
    )
    assert 10 < len(twice) < len(faces)


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"face_id": ["a"]}), path)
    with pytest.raises(DataError, match=r"set\.parquet holds no contents of aligned faces; run align again"):
        contents.read_contents(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"set\.parquet is no readable Parquet file of contents"):
        contents.read_contents(path)
