"""A sample of a source is labelled as the network labels each face by itself, and only what is shown has a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.faces import decode_one, encode, face_schema, write_shard
from fer_pipeline.artifacts.labels import label_faces, read_labels, write_labels

CLASSES = ("anger", "fear", "joy")


def predict(images: np.ndarray) -> np.ndarray:
    """Calls a crop by the mean of its three colours."""
    shares = images.reshape(len(images), -1, 3).mean(1, dtype=np.float64) + 1
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pool(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng, crops = np.random.default_rng(0), {}
    for part, count in enumerate((230, 1, 310)):  # row groups of 100
        rows = []
        for index in range(count):
            name = f"{part}/{index:03d}"
            crops[name] = np.tile(rng.integers(0, 255, 3, dtype=np.uint8), (8, 8, 1))
            image = {"bytes": encode(crops[name], format="png"), "path": None}
            rows.append({"face_id": name, "image": image, "label": 2 if index % 2 else None})
        table = pa.Table.from_pylist(rows, schema=face_schema(("fear", "joy", "anger"), crop=8))
        write_shard(tmp_path / f"part-{part:05d}.parquet", table)
    return tmp_path, crops


@pytest.mark.parametrize("drawn", [37, 1000])
def test_each_face_by_itself(pool: tuple[Path, dict[str, np.ndarray]], drawn: int, tmp_path: Path) -> None:
    folder, crops = pool
    how: dict[str, Any] = {"classes": CLASSES, "drawn": drawn, "shown": 4}
    rows, total = label_faces(folder, predict, seed=3, **how)
    assert total == len(crops) == 541
    names = [row["face_id"] for row in rows]
    assert len(set(names)) == len(names) == min(drawn, total)
    assert names == [name for name in crops if name in set(names)], "in the order of the shards"
    assert label_faces(folder, predict, seed=3, **how)[0] == rows
    assert drawn > total or [row["face_id"] for row in label_faces(folder, predict, seed=4, **how)[0]] != names
    for row in rows:
        [shares] = predict(crops[row["face_id"]][None])
        assert row["predicted"] == CLASSES[int(shares.argmax())]
        assert row["probability"] == pytest.approx(float(shares.max()))
        assert row["label"] == ("anger" if int(row["face_id"][2:]) % 2 else None), "a name of the pool's own classes"
    for name in CLASSES:
        own = sorted((row for row in rows if row["predicted"] == name), key=lambda row: -row["probability"])
        assert [row["image"] is not None for row in own] == [i < 4 or i >= len(own) - 4 for i in range(len(own))]
        for row in own[:4]:
            np.testing.assert_array_equal(decode_one(row["image"]), crops[row["face_id"]])
    path = tmp_path / "labels.parquet"
    write_labels(path, rows, seed=3, pool=total, labelled=0)
    found = read_labels(path)
    assert found is not None
    assert (found.seed, found.pool, found.rows[0].keys()) == (3, 541, rows[0].keys())
    assert [(row["predicted"], row["image"]) for row in found.rows] == [
        (row["predicted"], row["image"]) for row in rows
    ]


@pytest.mark.parametrize("drawn", [37, 1000])
def test_of_labelled_faces_those_that_were_learned_and_the_least_probable_labels(
    pool: tuple[Path, dict[str, np.ndarray]], drawn: int
) -> None:
    folder, crops = pool
    given = {name: CLASSES[place % 3] for place, name in enumerate(crops) if place % 4}
    given["of/another/folder"] = "joy"
    how: dict[str, Any] = {"classes": CLASSES, "given": given, "drawn": drawn, "shown": 2}
    rows, total = label_faces(folder, predict, seed=3, **how)
    assert total == len(given) - 1
    assert len({row["face_id"] for row in rows}) == len(rows) == min(drawn, total)
    for row in rows:
        [shares] = predict(crops[row["face_id"]][None])
        assert row["given"] == given[row["face_id"]]
        assert row["given_probability"] == pytest.approx(float(shares[CLASSES.index(row["given"])]))
        assert row["predicted"] == CLASSES[int(shares.argmax())]
    for name in CLASSES:
        own = sorted((row for row in rows if row["given"] == name), key=lambda row: row["given_probability"])
        assert [row["image"] is not None for row in own] == [i < 4 for i in range(len(own))]
