"""Collected faces: bounded reading, any order, and pictures that stay as they were."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from fer_pipeline.artifacts import faces
from fer_pipeline.artifacts.auxiliary import auxiliary_schema, collect_faces, write_class
from fer_pipeline.artifacts.faces import write_shard

CLASSES = ("anger", "fear")


def write_faces(folder: Path, shards: list[range]) -> None:
    for number, numbers in enumerate(shards):
        columns = {
            "face_id": [f"p/{i}" for i in numbers],
            "image": [{"bytes": bytes([i % 256]) * (i + 1), "path": None} for i in numbers],
            "label": [None for _ in numbers],
            "subject": [None for _ in numbers],
            "split": ["train" for _ in numbers],
            "landmarks": [[float(i)] * 10 for i in numbers],
            "score": [0.5 for _ in numbers],
            "source": ["x" for _ in numbers],
        }
        rows = pa.table(columns, schema=faces.face_schema(CLASSES, crop=8, border="reflect"))
        faces.write_shard(folder / f"part-{number:05d}.parquet", rows)


def test_wanted_faces_in_any_order(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", [range(250), range(250, 600)])
    wanted = np.random.default_rng(0).permutation(600)[:90]
    collected = collect_faces(tmp_path / "faces", pa.array([f"p/{i}" for i in wanted]), tmp_path / "spill.arrow")
    met = [int(name.split("/")[1]) for name in collected.face_id.to_pylist()]
    assert met == sorted(wanted.tolist())
    places = np.random.default_rng(1).permutation(90)
    found = collected.take(places).to_pylist()
    assert [row["face_id"] for row in found] == [f"p/{met[place]}" for place in places]
    for row in found:
        number = int(row["face_id"].split("/")[1])
        assert row["image"]["bytes"] == bytes([number % 256]) * (number + 1)
        assert row["landmarks"] == [float(number)] * 10


def test_row_groups_without_a_wanted_face_are_not_read(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", [range(500)])
    collected = collect_faces(tmp_path / "faces", pa.array(["p/101", "p/102", "p/450"]), tmp_path / "spill.arrow")
    assert [batch.num_rows for batch in collected.batches] == [2, 1]


def test_schema_keeps_what_the_faces_say_of_themselves(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", [range(3)])
    schema = auxiliary_schema(tmp_path / "faces", CLASSES)
    assert schema.names[-3:] == ["pseudo_label", "margin", "rank"]
    write_shard(tmp_path / "out" / "part-00000.parquet", schema.empty_table())
    assert faces.read_metadata(tmp_path / "out") == {"border": "reflect", "classes": list(CLASSES), "crop": 8}


def test_class_is_cut_into_shards(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces", [range(300)])
    names = [f"p/{i}" for i in range(250)][::-1]
    collected = collect_faces(tmp_path / "faces", pa.array(names), tmp_path / "spill.arrow")
    members = pa.table(
        {
            "face_id": names,
            "label": [1] * 250,
            "margin": pa.array(np.linspace(1, 0, 250), pa.float32()),
            "rank": range(1, 251),
        }
    )
    schema = auxiliary_schema(tmp_path / "faces", CLASSES)
    write_class(tmp_path / "out" / "fear", collected, members, schema, per_shard=120)
    paths = faces.shard_paths(tmp_path / "out")
    assert {path.parent.name for path in paths} == {"fear"}
    assert [len(faces.open_shard(path).read()) for path in paths] == [120, 120, 10]
    assert faces.open_shard(paths[0]).num_row_groups == 2
    assert faces.read_table(tmp_path / "out", ["face_id"]).column("face_id").to_pylist() == names
