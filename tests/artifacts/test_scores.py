"""Scores and centroids on disk: what was written comes back, other classes are refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.arrays import write_arrays
from fer_pipeline.artifacts.scores import (
    HELDOUT,
    Centroids,
    read_centroids,
    read_heldout,
    read_scores,
    score_batch,
    score_schema,
    write_centroids,
    write_scores,
)
from fer_pipeline.core.errors import DataError

CLASSES = ("anger", "fear")


def rows(
    cosine: list[list[float]], start: int = 0, label: list[int] | None = None, logit: list[list[float]] | None = None
) -> pa.RecordBatch:
    values = np.array(cosine, np.float32).reshape(-1, 2)
    return score_batch(
        score_schema(CLASSES, labelled=label is not None, logits=logit is not None),
        face_id=pa.array([f"set/{start + i}" for i in range(len(values))], pa.string()),
        cosine=values,
        nearest=values.argmax(axis=1),
        margin=np.abs(values[:, 0] - values[:, 1]),
        logit=None if logit is None else np.array(logit, np.float32),
        label=None if label is None else np.array(label),
    )


def test_round_trip_over_shards(tmp_path: Path) -> None:
    schema = score_schema(CLASSES)
    write_scores(tmp_path / "part-00001.arrow", schema, [rows([[0.5, -0.25]], 2)])
    write_scores(tmp_path / "part-00000.arrow", schema, [rows([[0.25, 0.75]], 0), rows([[0, 0]], 1)])
    scores = read_scores(tmp_path, classes=CLASSES)
    assert scores.face_id.to_pylist() == ["set/0", "set/1", "set/2"]
    assert scores.nearest.tolist() == [1, 0, 0]
    assert scores.margin.tolist() == [0.5, 0, 0.75]
    assert scores.best.tolist() == [0.75, 0, 0.5]
    assert scores.directed.tolist() == [True, False, True]
    assert scores.label is None


def test_rules_by_probability_by_hand(tmp_path: Path) -> None:
    """Odds of 1 to 3, and two margins of logits that single precision would both call certain."""
    logit = [[0, np.log(3)], [30, 0], [31, 0]]
    batch = rows([[0.5, 0.25]] * 3, logit=logit)
    write_scores(tmp_path / "part-00000.arrow", score_schema(CLASSES, logits=True), [batch])
    scores = read_scores(tmp_path, classes=CLASSES)
    largest, margin = scores.rankings["probability"], scores.rankings["probability_margin"]
    assert largest.label.tolist() == margin.label.tolist() == [1, 0, 0]
    np.testing.assert_allclose([largest.value[0], margin.value[0]], [0.75, 0.5], rtol=1e-6)
    assert largest.value[1] < largest.value[2] < 1
    assert scores.cosine_to(largest.label).tolist() == [0.25, 0.5, 0.5]
    write_scores(tmp_path / "part-00001.arrow", score_schema(CLASSES), [rows([[0.5, 0.25]], 3)])
    with pytest.raises(DataError, match=r"part-00001.arrow has no column logit.*rerun score"):
        read_scores(tmp_path, classes=CLASSES)


def test_logits_that_are_not_finite_are_one_line(tmp_path: Path) -> None:
    batch = rows([[0.5, 0.25]], logit=[[np.inf, 0]])
    write_scores(tmp_path / "part-00000.arrow", score_schema(CLASSES, logits=True), [batch])
    with pytest.raises(DataError, match="logits that are not finite; rerun score"):
        read_scores(tmp_path, classes=CLASSES)


def test_held_out_faces_have_labels(tmp_path: Path) -> None:
    write_scores(tmp_path / HELDOUT, score_schema(CLASSES, labelled=True), [rows([[0.5, 0.25]], label=[1])])
    heldout = read_heldout(tmp_path, classes=CLASSES)
    assert heldout.label is not None
    assert heldout.label.tolist() == [1]


def test_no_held_out_face_is_no_fault(tmp_path: Path) -> None:
    write_scores(tmp_path / HELDOUT, score_schema(CLASSES, labelled=True), [])
    assert len(read_heldout(tmp_path, classes=CLASSES)) == 0


def test_other_classes_are_refused(tmp_path: Path) -> None:
    write_scores(tmp_path / "part-00000.arrow", score_schema(CLASSES), [rows([[0.5, 0.25]])])
    with pytest.raises(DataError, match=r"expected .*'fear', 'anger'.*rerun score"):
        read_scores(tmp_path, classes=("fear", "anger"))
    with pytest.raises(DataError, match=r"heldout.arrow does not exist"):
        read_heldout(tmp_path, classes=CLASSES)


def test_centroids_keep_every_digit(tmp_path: Path) -> None:
    stored = Centroids(np.random.default_rng(0).standard_normal((2, 5)), np.array([3, 4]), CLASSES)
    write_centroids(tmp_path, stored)
    read = read_centroids(tmp_path)
    np.testing.assert_array_equal(read.vectors, stored.vectors)
    np.testing.assert_array_equal(read.counts, stored.counts)
    assert read.classes == CLASSES


def test_missing_or_damaged_centroids_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; run: dvc repro score"):
        read_centroids(tmp_path)
    (tmp_path / "centroids.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="is damaged"):
        read_centroids(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        (1, pa.array([[0.5, np.nan]], pa.list_(pa.float32(), 2)), "cosines or margins that are not finite"),
        (2, pa.array([2]), "classes outside of the 2 of the settings"),
        (2, pa.array([-1]), "classes outside of the 2 of the settings"),
        (3, pa.array([np.inf], pa.float32()), "cosines or margins that are not finite"),
        (4, pa.array([2**40]), "classes outside of the 2 of the settings"),
        (4, pa.array([None], pa.int64()), "has no label in 1 of 1 rows"),
    ],
)
def test_numbers_of_nothing_are_one_line(tmp_path: Path, column: int, value: pa.Array, told: str) -> None:
    schema = score_schema(CLASSES, labelled=True)
    columns = rows([[0.5, 0.25]], label=[1]).columns
    columns[column] = value
    write_scores(tmp_path / HELDOUT, schema, [pa.RecordBatch.from_arrays(columns, schema=schema)])
    with pytest.raises(DataError, match=rf"{told}.*rerun score"):
        read_heldout(tmp_path, classes=CLASSES)


@pytest.mark.parametrize(
    ("change", "about", "told"),
    [
        ({"counts": np.array([1, 2, 3])}, "anger\nfear", r"counts is I64 \[3\], expected I64 \[classes\]"),
        ({"counts": np.array([1.0, 2.0])}, "anger\nfear", r"counts is F64 \[2\], expected I64"),
        ({"vectors": np.full((2, 5), np.nan)}, "anger\nfear", "holds vectors that are not finite"),
        ({}, "anger", "does not name its classes"),
    ],
)
def test_centroids_of_another_form_are_one_line(
    tmp_path: Path, change: dict[str, np.ndarray], about: str, told: str
) -> None:
    arrays = {"vectors": np.ones((2, 5)), "counts": np.array([3, 4]), **change}
    write_arrays(tmp_path / "centroids.safetensors", arrays, {"classes": about})
    with pytest.raises(DataError, match=rf"{told}.*run: dvc repro score"):
        read_centroids(tmp_path)
