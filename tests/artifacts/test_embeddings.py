"""Embeddings on disk: exact bytes back as views, damage and NaN as one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.embeddings import embedding_paths, iter_embeddings, model_of, write_embeddings
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
    assert model_of(path) == ("abc", 8)


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
