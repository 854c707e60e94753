"""Which rows of a folder are distilled: against labels and pictures that the test itself wrote."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.faces import FACE_FIELDS, decode_one, encode, face_schema, image_schema, write_shard
from fer_pipeline.core.errors import DataError
from fer_pipeline.distillation.source import read_source

CLASSES = ("anger", "happiness", "neutral")


def _grey(value: int) -> bytes:
    return encode(np.full((8, 8, 3), value, np.uint8), format="png")


def _columns(names: Sequence[str], labels: Sequence[int | None], values: Sequence[int]) -> dict[str, list]:
    count = len(names)
    return {
        "face_id": list(names),
        "image": [{"bytes": _grey(value), "path": f"{name}.png"} for name, value in zip(names, values, strict=True)],
        "label": list(labels),
        "subject": [None] * count,
        "split": ["train"] * count,
        "landmarks": [[0.0] * 10] * count,
        "score": [1.0] * count,
        "source": list(names),
    }


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Two shards of a faces split; row r is grey r, labels 0 0 1 None | 2 2 2 2."""
    schema = face_schema(CLASSES, crop=8)
    for part, (first, labels) in enumerate([(0, [0, 0, 1, None]), (4, [2, 2, 2, 2])]):
        values = range(first, first + 4)
        rows = _columns([f"set/{value}" for value in values], labels, list(values))
        write_shard(tmp_path / "train" / f"part-{part:05d}.parquet", pa.table(rows, schema=schema))
    return tmp_path / "train"


def _greys(encoded: Sequence[bytes]) -> list[int]:
    return [int(decode_one(item)[0, 0, 0]) for item in encoded]


def test_labelled_rows_of_a_split_in_shard_order(split: Path) -> None:
    source = read_source(split, classes=CLASSES, seed=0)
    assert source.kind == "faces"
    assert _greys(source.encoded) == [0, 1, 2, 4, 5, 6, 7]
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert source.counts().tolist() == [2, 1, 4]
    assert source.left_out == {"unlabelled": 1, "held out": 0, "beyond max_images": 0}


def test_held_out_faces_are_never_learned_from(split: Path) -> None:
    source = read_source(split, classes=CLASSES, seed=0, held_out=frozenset({"set/1", "set/6", "set/3"}))
    assert _greys(source.encoded) == [0, 2, 4, 5, 7]
    assert source.left_out == {"unlabelled": 1, "held out": 2, "beyond max_images": 0}


def test_a_bound_keeps_rare_classes_whole(split: Path) -> None:
    source = read_source(split, classes=CLASSES, seed=0, max_images=5)
    assert source.counts().tolist() == [2, 1, 2]
    assert source.left_out["beyond max_images"] == 2
    again = read_source(split, classes=CLASSES, seed=0, max_images=5)
    assert again.encoded == source.encoded
    others = {tuple(_greys(read_source(split, classes=CLASSES, seed=s, max_images=5).encoded)) for s in range(8)}
    assert len(others) > 1


def test_auxiliary_shards_are_known_by_their_schema(tmp_path: Path) -> None:
    fields = [*FACE_FIELDS, pa.field("pseudo_label", pa.int64()), pa.field("margin", pa.float32())]
    schema = image_schema(fields, CLASSES)
    for pool, name, label, value in [("a", "anger", 0, 10), ("a", "neutral", 2, 20), ("b", "anger", 0, 30)]:
        rows = {**_columns([f"{pool}/{value}"], [1], [value]), "pseudo_label": [label], "margin": [0.5]}
        write_shard(tmp_path / pool / name / "part-00000.parquet", pa.table(rows, schema=schema))
    source = read_source(tmp_path, classes=CLASSES, seed=0)
    assert source.kind == "auxiliary"
    assert list(zip(_greys(source.encoded), source.labels.tolist(), strict=True)) == [(10, 0), (20, 2), (30, 0)]
    assert read_source(tmp_path / "b", classes=CLASSES, seed=0).labels.tolist() == [0]


def test_the_hash_tells_images_and_labels_apart(split: Path) -> None:
    whole = read_source(split, classes=CLASSES, seed=0)
    less = read_source(split, classes=CLASSES, seed=0, held_out=frozenset({"set/7"}))
    assert whole.sha256() == read_source(split, classes=CLASSES, seed=5).sha256()
    assert whole.sha256() != less.sha256()


def test_other_classes_are_refused(split: Path) -> None:
    with pytest.raises(DataError, match=r"expected \['happiness', 'anger', 'neutral'\] in this order"):
        read_source(split, classes=("happiness", "anger", "neutral"), seed=0)


def test_a_test_split_is_refused(tmp_path: Path) -> None:
    rows = {**_columns(["set/0"], [0], [0]), "split": ["test"]}
    write_shard(tmp_path / "part-00000.parquet", pa.table(rows, schema=face_schema(CLASSES, crop=8)))
    with pytest.raises(DataError, match="holds the split 'test'"):
        read_source(tmp_path, classes=CLASSES, seed=0)


def test_nothing_to_distil_is_refused(split: Path) -> None:
    everything = frozenset(f"set/{value}" for value in range(8))
    with pytest.raises(DataError, match="no labelled image to distil"):
        read_source(split, classes=CLASSES, seed=0, held_out=everything)
