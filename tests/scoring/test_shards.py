"""Shards of embeddings to shards of scores: the same bytes whatever the blocks and threads, and faults in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.embeddings import Block, write_embeddings
from fer_pipeline.artifacts.scores import read_heldout, read_scores, score_schema
from fer_pipeline.core.errors import DataError
from fer_pipeline.scoring import shards as scoring
from fer_pipeline.scoring.engines import TOLERANCE, cosine_reference, make_engine
from fer_pipeline.scoring.shards import FaceCounts, score_blocks, score_shards

CLASSES = ("anger", "fear", "neutral")
WIDTH = 24


def embeddings(folder: Path, sizes: list[int], *, batch: int = 7) -> tuple[list[Path], np.ndarray]:
    """Shards of these sizes in small record batches, and all their vectors; the first of each shard is zero."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths, all_vectors = [], [np.zeros((0, WIDTH), np.float16)]
    for number, size in enumerate(sizes):
        vectors = rng.standard_normal((size, WIDTH)).astype(np.float32)
        vectors[:1] = 0
        names = pa.array([f"pool/{number}-{row}" for row in range(size)], pa.string())
        batches = [(names[start : start + batch], vectors[start : start + batch]) for start in range(0, size, batch)]
        paths.append(folder / f"part-{number:05d}.arrow")
        write_embeddings(paths[-1], batches, dimensions=WIDTH, model="abc", shard="x")
        all_vectors.append(vectors.astype(np.float16))
    return paths, np.concatenate(all_vectors)


def scored(paths: list[Path], out: Path, *, workers: int = 1, engine: str = "llvm") -> FaceCounts:
    out.mkdir()
    made = make_engine(engine, np.random.default_rng(1).standard_normal((3, WIDTH)), device="cpu")
    counts = score_shards(paths, out=out, schema=score_schema(CLASSES), engine=made, dimensions=WIDTH, workers=workers)
    return sum(counts, FaceCounts())


def test_every_face_is_scored_and_counted(tmp_path: Path) -> None:
    paths, vectors = embeddings(tmp_path / "in", [20, 0, 33])
    assert scored(paths, tmp_path / "out") == FaceCounts(faces=53, no_direction=2)
    scores = read_scores(tmp_path / "out", classes=CLASSES)
    assert scores.face_id.to_pylist() == [f"pool/{n}-{row}" for n, size in ((0, 20), (2, 33)) for row in range(size)]
    truth = cosine_reference(vectors, np.random.default_rng(1).standard_normal((3, WIDTH)))
    np.testing.assert_allclose(scores.best, truth.max(axis=1), atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(scores.nearest, truth.argmax(axis=1))
    assert np.flatnonzero(~scores.directed).tolist() == [0, 20]


def test_neither_blocks_nor_threads_nor_record_batches_change_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = embeddings(tmp_path / "in", [50, 3, 41, 8])
    scored(paths, tmp_path / "one")
    scored(paths, tmp_path / "two", workers=3)
    for path in paths:
        assert (tmp_path / "one" / path.name).read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    whole = pa.ipc.open_file(tmp_path / "one" / paths[0].name).read_all()
    monkeypatch.setattr(scoring, "BLOCK", 2 * WIDTH * 9)  # blocks of nine faces
    scored(paths, tmp_path / "blocks")
    cut = pa.ipc.open_file(tmp_path / "blocks" / paths[0].name)
    assert cut.num_record_batches == 6
    assert cut.read_all().equals(whole)
    monkeypatch.undo()
    other, _ = embeddings(tmp_path / "large", [50, 3, 41, 8], batch=1000)
    scored(other, tmp_path / "batches")
    assert pa.ipc.open_file(tmp_path / "batches" / paths[0].name).read_all().equals(whole)


@pytest.mark.parametrize("engine", ["llvm", "numpy", "faiss"])
def test_features_that_are_not_finite_name_their_shard_and_end_the_scoring(tmp_path: Path, engine: str) -> None:
    paths, vectors = embeddings(tmp_path / "in", [10, 10, 10])
    broken = vectors[10:20].copy()
    broken[[2, 5], 3] = np.nan, np.inf
    column = pa.FixedSizeListArray.from_arrays(pa.array(broken.reshape(-1)), WIDTH)
    schema = pa.ipc.open_file(paths[1]).schema
    with pa.OSFile(str(paths[1]), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([pa.array([str(i) for i in range(10)]), column], schema=schema))
    with pytest.raises(DataError, match=r"part-00001.arrow has 2 faces with NaN or infinite features") as raised:
        scored(paths, tmp_path / "out", engine=engine)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "out" / "part-00000.arrow").is_file()
    assert not (tmp_path / "out" / "part-00001.arrow").exists()


def test_labels_go_beside_their_faces(tmp_path: Path) -> None:
    vectors = np.eye(3, WIDTH).astype(np.float16)
    blocks = [
        (Block(pa.chunked_array([pa.array(["a", "b"])]), (vectors[:1], vectors[1:2])), np.array([1, 2])),
        (Block(pa.chunked_array([pa.array(["c"])]), (vectors[2:],)), np.array([0])),
    ]
    engine = make_engine("llvm", np.eye(3, WIDTH))
    schema = score_schema(CLASSES, labelled=True)
    counts = score_blocks(tmp_path / "heldout.arrow", schema, blocks, engine=engine, source=tmp_path)
    found = read_heldout(tmp_path, classes=CLASSES)
    assert counts == FaceCounts(3, 0)
    assert found.face_id.to_pylist() == ["a", "b", "c"]
    assert found.label is not None
    assert found.label.tolist() == [1, 2, 0]
    assert found.nearest.tolist() == [0, 1, 2]
    assert found.margin.tolist() == [1, 1, 1]
