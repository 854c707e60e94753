"""Shards of faces that were cut short or swapped from outside: one line says so, and the others are finished."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.embeddings import embedding_paths
from fer_pipeline.artifacts.faces import face_schema, open_shard, write_parquet
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.stages import embed
from tests.project import project_settings

SWAPPED = "part-00001.parquet"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 2000] = bytes(2000)
    path.write_bytes(bytes(data))


def other_schema(path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(12)}), path)


def other_classes(path: Path) -> None:
    table = open_shard(path).read()
    write_parquet(path, table.cast(face_schema(("fear", "anger", "neutral"), crop=16, border="constant")))


def other_crop(path: Path) -> None:
    table = open_shard(path).read()
    write_parquet(path, table.cast(face_schema(("anger", "fear", "neutral"), crop=24, border="constant")))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut_short, "is no readable Parquet shard"),
        (empty, "is no readable Parquet shard"),
        (flip_a_byte, SWAPPED),
        (other_schema, "has no column face_id, image; found x"),
        (other_classes, "holds the classes fear, anger, neutral, expected anger, fear, neutral"),
        (other_crop, "holds crops of 24 px, the other shards of 16 px"),
    ],
)
def test_a_harmed_shard_is_told_and_the_others_are_made(
    tmp_path: Path, small_faces, small_primitive, harm, told
) -> None:
    faces, model = small_faces("street", [12, 12, 12]), small_primitive()
    options = {"name": "street", "faces": faces, "model": model}
    embed.run(embed.Config(), project_settings(), out=tmp_path / "whole", store=tmp_path / "elsewhere", **options)
    sound = (faces / SWAPPED).read_bytes()
    harm(faces / SWAPPED)
    with pytest.raises(DataError, match=told) as raised:
        embed.run(embed.Config(), project_settings(), out=tmp_path / "out", store=tmp_path / "store", **options)
    assert SWAPPED in str(raised.value)
    assert "2 shards made, 0 reused, 1 failed" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()
    (faces / SWAPPED).write_bytes(sound)
    mended = embed.run(embed.Config(), project_settings(), out=tmp_path / "out", store=tmp_path / "store", **options)
    assert (mended.counts["made"], mended.counts["reused"]) == (1, 2)
    assert [file_sha256(path) for path in embedding_paths(tmp_path / "out")] == [
        file_sha256(path) for path in embedding_paths(tmp_path / "whole")
    ]
