"""What `mined export` writes: read by other libraries, neighbours and map compared with brute force."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA

from fer_pipeline.artifacts import faces
from fer_pipeline.inspection.export import find_neighbours
from fer_pipeline.inspection.export import project as project_vectors
from tests.inspection.conftest import POOLS, Project, names_of, vectors_of

Say = Callable[..., str]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PLAIN = {
    "face_id": pa.string(), "pool": pa.string(), "label": pa.string(),
    "cosine": pa.float32(), "margin": pa.float32(), "rank": pa.int64(),
}  # fmt: skip
MAP = {
    "projection_x": pa.float32(),
    "projection_y": pa.float32(),
    "neighbors": pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]),
}


def pictures_of(project: Project) -> dict[str, bytes]:
    rows = [row for pool in POOLS for row in faces.read_table(project.folder / "data/faces" / pool / "train",
                                                              ["face_id", "image"]).to_pylist()]  # fmt: skip
    return {row["face_id"]: row["image"]["bytes"] for row in rows}


def unit_vectors(rows: list[dict[str, Any]], learner: int) -> np.ndarray:
    vectors = {pool: dict(zip(names_of(pool), vectors_of(pool, learner), strict=True)) for pool in POOLS}
    chosen = np.array([vectors[row["pool"]][row["face_id"]] for row in rows], np.float64)
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


@pytest.mark.parametrize("rev", ["v1", "v3"])
def test_the_map_has_the_true_neighbours_of_each_row(project: Project, say: Say, tmp_path: Path, rev: str) -> None:
    out = tmp_path / "map.parquet"
    assert "--neighbors neighbors --image image" in say(
        "export", "--rev", rev, "--out", str(out), "--format", "atlas", "--neighbours", "5"
    )
    table = pq.read_table(out)
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {**PLAIN, **MAP, "image": IMAGE}
    rows, expected = table.to_pylist(), project.rows[rev]
    assert [row["face_id"] for row in rows] == [row["face_id"] for row in expected]
    unit = unit_vectors(expected, 0 if rev == "v1" else 1)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    for number, row in enumerate(rows):
        ids = row["neighbors"]["ids"]
        nearest = np.sort(distance[number])[:5]
        assert len({*ids, number}) == 6
        assert row["neighbors"]["distances"] == pytest.approx(nearest.tolist(), abs=1e-6)
        assert distance[number, ids] == pytest.approx(nearest, abs=1e-6)
    found = np.array([[row["projection_x"], row["projection_y"]] for row in rows])
    reference = PCA(2, svd_solver="full").fit_transform(unit)
    assert np.allclose(np.abs(found), np.abs(reference), atol=1e-5)  # the signs are a choice


def test_the_same_faces_give_the_same_file(project: Project, say: Say, tmp_path: Path) -> None:
    for name in "ab":
        say("export", "--rev", "v2", "--out", str(tmp_path / name), "--format", "atlas")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("images", [True, False])
def test_parquet_opens_as_a_data_set_with_pictures(project: Project, say: Say, tmp_path: Path, images: bool) -> None:
    out = tmp_path / "v2.parquet"
    say("export", "--rev", "v2", "--out", str(out), "--images" if images else "--no-images")
    table = pq.read_table(out)
    expected = PLAIN | ({"image": IMAGE} if images else {})
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == expected
    assert table.drop_columns(["image"] if images else []).to_pylist() == project.rows["v2"]
    features = datasets.Features.from_arrow_schema(table.schema)
    assert isinstance(features.get("image"), datasets.Image) == images
    if images:
        known = pictures_of(project)
        for picture, row in zip(table["image"].to_pylist(), project.rows["v2"], strict=True):
            assert picture["bytes"] == known[row["face_id"]]


def test_csv_holds_every_row(project: Project, say: Say, tmp_path: Path) -> None:
    say("export", "--rev", "wide", "--out", str(tmp_path / "rows.csv"), "--format", "csv")
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert [row["face_id"].removeprefix("'") for row in rows] == [row["face_id"] for row in project.rows["wide"]]
    assert [int(row["rank"]) for row in rows] == [row["rank"] for row in project.rows["wide"]]


def test_a_folder_of_pictures(project: Project, say: Say, tmp_path: Path) -> None:
    """Names of faces lead nowhere else, and `metadata.csv` says whose picture each file is."""
    say("export", "--rev", "v1", "--out", str(tmp_path / "new" / "v1"), "--format", "images")
    known, expected = pictures_of(project), project.rows["v1"]
    with (tmp_path / "new/v1/metadata.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    assert [row["face_id"].removeprefix("'") for row in rows] == [row["face_id"] for row in expected]
    for row, one in zip(rows, expected, strict=True):
        path = tmp_path / "new/v1" / row["file_name"]
        assert path.read_bytes() == known[one["face_id"]]
        assert path.parent.name == one["label"]
        assert int(path.name.partition("_")[0]) == one["rank"]
    written = {path.relative_to(tmp_path / "new/v1").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {row["file_name"] for row in rows} | {"metadata.csv"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["v1"]


def test_neighbours_where_faces_are_equal_or_few() -> None:
    """Equal faces are each other's neighbours, never their own; of a single face there is none."""
    same = np.tile(np.array([[0.6, 0.8]], np.float32), (9, 1))
    ids, distances = find_neighbours(same, 3)
    assert all(number not in row and len({*row}) == 3 for number, row in enumerate(ids.tolist()))
    assert np.allclose(distances, 0, atol=1e-6)
    assert [part.shape for part in find_neighbours(same[:1], 0)] == [(1, 0), (1, 0)]
    assert project_vectors(same[:1]).tolist() == [[0, 0]]
    assert project_vectors(same[:, :1]).shape == (9, 2)
