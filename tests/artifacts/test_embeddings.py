"""Embeddings on disk: exact bytes back as views, damage and NaN as one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.embeddings import (
    embedding_paths,
    iter_embeddings,
    read_model_and_width,
    stream_embeddings,
    write_embeddings,
)
from fer_pipeline.core.errors import DataError


def batch(start: int, rows: int, width: int = 8) -> tuple[pa.Array, np.ndarray]:
    names = pa.array([f"set/{start + i}" for i in range(rows)], pa.string())
    return names, np.random.default_rng(start).standard_normal((rows, width)).astype(np.float32)


def write(path: Path, *batches: tuple[pa.Array, np.ndarray], model: str = "abc", width: int = 8) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_embeddings(path, batches, dimensions=width, model=model, shard=path.name)


def test_round_trip_in_half_precision(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    parts = [batch(0, 5), batch(5, 3)]
    assert write(path, *parts) == 8
    read = list(iter_embeddings(path))
    assert [name for part in read for name in part.face_id.to_pylist()] == [f"set/{i}" for i in range(8)]
    expected = np.concatenate([vectors for _, vectors in parts]).astype(np.float16)
    np.testing.assert_array_equal(np.concatenate([part.vector for part in read]), expected)
    assert read_model_and_width(path) == ("abc", 8)


def test_vectors_are_views_into_the_file(tmp_path: Path) -> None:
    """No copy: the array does not own its memory and cannot be written to."""
    path = tmp_path / "part-00000.arrow"
    write(path, batch(0, 1000))
    before = pa.total_allocated_bytes()
    (part,) = iter_embeddings(path)
    assert not part.vector.flags.owndata
    assert not part.vector.flags.writeable
    assert pa.total_allocated_bytes() == before


def test_batches_are_cut_to_size(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    names, vectors = batch(0, 10)
    write(path, (names, vectors))
    parts = list(iter_embeddings(path, batch_size=4))
    assert [len(part) for part in parts] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([part.vector for part in parts]), vectors.astype(np.float16))
    assert [name for part in parts for name in part.face_id.to_pylist()] == names.to_pylist()


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_what_is_not_finite_names_shard_and_count(tmp_path: Path, value: float) -> None:
    names, vectors = batch(0, 10)
    vectors[[2, 7], 3] = value
    with pytest.raises(DataError, match=r"part-00007.arrow: 2 of 10 faces") as raised:
        write(tmp_path / "part-00007.arrow", (names, vectors))
    assert "\n" not in str(raised.value)


def test_shards_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "part-00000.arrow", batch(0, 2))
    write(tmp_path / "part-00001.arrow", batch(2, 2))
    assert len(embedding_paths(tmp_path)) == 2
    write(tmp_path / "part-00001.arrow", batch(2, 2), model="other")
    with pytest.raises(DataError, match="different checkpoints"):
        embedding_paths(tmp_path)


def test_damage_and_absence_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards in"):
        embedding_paths(tmp_path)
    path = tmp_path / "part-00000.arrow"
    write(path, batch(0, 100))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="no readable Arrow file") as raised:
        embedding_paths(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "part-00000.arrow", batch(0, 50))
    first, second = (tmp_path / name / "part-00000.arrow" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_walk_gives_all_rows_in_blocks_of_views(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    parts = [batch(0, 5), batch(5, 0), batch(5, 3), batch(8, 4)]
    write(path, *parts)
    expected = np.concatenate([vectors for _, vectors in parts]).astype(np.float16)
    for rows in (1, 3, 5, 12, 100):
        blocks = list(stream_embeddings(path, rows=rows))
        assert [len(block) for block in blocks] == [rows] * (12 // rows) + [12 % rows] * bool(12 % rows)
        views = [view for block in blocks for view in block.parts]
        np.testing.assert_array_equal(np.concatenate(views), expected)
        assert not any(view.flags.owndata or view.flags.writeable for view in views)
        names = [name for block in blocks for name in block.face_id.to_pylist()]
        assert names == [f"set/{i}" for i in range(12)]


def test_an_empty_shard_has_no_block(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    write(path)
    assert list(stream_embeddings(path, rows=4)) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not say what is mapped")
def test_a_walk_holds_no_more_of_the_file_in_memory_than_a_block(tmp_path: Path) -> None:
    """Mapped pages count as memory of the process: a file of 32 MB must not add up."""
    path = tmp_path / "part-00000.arrow"
    write(path, *[(pa.array([str(i) for i in range(1024)]), np.ones((1024, 2048), np.float32))] * 8, width=2048)
    most = 0
    for block in stream_embeddings(path, rows=512):
        assert all((part == 1).all() for part in block.parts)  # every page is read
        lines = Path("/proc/self/smaps").read_text().split(str(path))[1].splitlines()
        most = max(most, next(int(line.split()[1]) for line in lines if line.startswith("Rss:")))
    assert 1024 <= most <= 8 * 1024  # kB: a block has 2 MB


def test_files_that_embed_did_not_write_are_told(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    for column, told in (
        (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), r"has fixed_size_list.*float.*expected .*halffloat"),
        (pa.array([1]), "has int64"),
    ):
        columns = [pa.array(["a"]), column]
        batch = pa.RecordBatch.from_arrays(columns, names=["face_id", "vector"])
        with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as file:
            file.write_batch(batch)
        with pytest.raises(DataError, match=rf"is of another program .*{told}.*rerun embed") as raised:
            embedding_paths(tmp_path)
        assert "\n" not in str(raised.value)


def test_damage_in_a_walk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.arrow"
    for data in (b"", b"ARROW1\0\0 and no more of it"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"part-00000.arrow is no readable Arrow file") as raised:
            list(stream_embeddings(path, rows=4))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("vector", "told"), [(None, "has no vector in 1 of 2 rows"), ([None] + [1.0] * 7, "nulls")])
def test_a_face_without_a_vector_is_told(tmp_path: Path, vector: list[float | None] | None, told: str) -> None:
    path = tmp_path / "part-00000.arrow"
    write(path, batch(0, 2))
    schema = pa.ipc.open_file(path).schema
    column = pa.array([[1.0] * 8, vector], pa.list_(pa.float16(), 8))
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as file:
        file.write_batch(pa.RecordBatch.from_arrays([pa.array(["a", "b"]), column], schema=schema))
    for read in (iter_embeddings, lambda path: stream_embeddings(path, rows=4)):
        with pytest.raises(DataError, match=rf"{told}.*rerun embed"):
            list(read(path))
