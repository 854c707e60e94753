"""The predictions table gives back what was written, holds names, and reports damage in one line."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.arrow import encode_metadata
from fer_pipeline.artifacts.metrics import read_failures, read_predictions, write_predictions
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_json
from fer_pipeline.evaluation.predictions import Predictions


@pytest.fixture
def predictions() -> Predictions:
    shares = np.array([[[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]], [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]], dtype=np.float32)
    return Predictions(
        classes=("anger", "fear"),
        seeds=(10, 3),
        face_id=np.array(["t/a", "t/b", "t/ü"], dtype=object),
        labels=np.array([0, 1, 1]),
        subjects=np.array(["x", "", "x"], dtype=object),
        probabilities=shares,
    )


def test_round_trip_and_names(tmp_path: Path, predictions: Predictions) -> None:
    path = tmp_path / "deep" / "predictions.parquet"
    write_predictions(path, predictions)
    back = read_predictions(path)
    assert (back.classes, back.seeds) == (predictions.classes, (10, 3))
    assert back.face_id.tolist() == ["t/a", "t/b", "t/ü"]
    assert back.subjects.tolist() == ["x", "", "x"]
    np.testing.assert_array_equal(back.labels, predictions.labels)
    np.testing.assert_array_equal(back.probabilities, predictions.probabilities)
    table = pq.read_table(path)
    assert table["predicted_10"].to_pylist() == ["anger", "fear", "fear"]
    assert table["predicted_3"].to_pylist() == ["fear", "anger", "anger"]
    again = tmp_path / "again.parquet"
    write_predictions(again, back)
    assert again.read_bytes() == path.read_bytes()


def test_confusions_and_clusters(predictions: Predictions) -> None:
    assert predictions.confusions.tolist() == [[[1, 0], [0, 2]], [[0, 1], [2, 0]]]
    assert predictions.clusters == ["x", "", "x"]


def test_damage_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; run: dvc repro evaluate"):
        read_predictions(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="is no readable predictions table"):
        read_predictions(tmp_path / "bad.parquet")


def test_tables_that_do_not_fit_their_metadata_are_one_line(tmp_path: Path, predictions: Predictions) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, predictions)
    table = pq.read_table(path)
    about = {"classes": ["anger", "fear"], "seeds": [10, 3]}
    for change, told in (
        ({"classes": ["anger", "joy"]}, "KeyError.'fear'"),
        ({"classes": ["anger"]}, r"column probabilities_10 has fixed_size_list.*\[2\], expected .*\[1\]"),
        ({"seeds": [10, 7]}, "has no column probabilities_7"),
        ({"seeds": []}, "at least one array"),
        ({"seeds": ["10"]}, "seeds.0: Input should be a valid integer"),
    ):
        pq.write_table(table.replace_schema_metadata(encode_metadata(**{**about, **change})), path)
        with pytest.raises(DataError, match=rf"predictions\.parquet .*{told}"):
            read_predictions(path)


@pytest.mark.parametrize("name", ["../../secret", "a/b", "", ".hidden", "a\x1bb"])
def test_failures_name_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    row = {"face_id": "a", "label": name, "predicted": "fear", "probability": 0.5, "rank": 1}
    write_json(tmp_path / "failures.json", [row])
    with pytest.raises(DataError, match=r"0\.label: String should match pattern"):
        read_failures(tmp_path)


@pytest.mark.parametrize(
    ("picture", "told"), [(b"GIF89a", "is no PNG"), (bytes(16_000_001), "are shown"), (None, "No such")]
)
def test_a_failure_that_is_no_picture_for_a_page_is_one_line(tmp_path: Path, picture: bytes | None, told: str) -> None:
    row = {"face_id": "a", "label": "joy", "predicted": "fear", "probability": 0.5, "rank": 1}
    write_json(tmp_path / "failures.json", [row])
    if picture is not None:
        (tmp_path / "joy-01-as-fear.png").write_bytes(picture)
    with pytest.raises(DataError, match=rf"lacks what its failures\.json lists \([^\n]*{told}[^\n]*\); run: dvc repro"):
        read_failures(tmp_path)
