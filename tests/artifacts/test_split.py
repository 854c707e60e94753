"""The split of the anchor: what is written comes back, and a damaged or foreign one is refused in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.split import (
    FIT,
    HELDOUT,
    NO_LABEL,
    SPLIT,
    VALIDATION,
    of_calibration,
    read_split,
    write_split,
)
from fer_pipeline.core.errors import DataError

FACES = ["a", "b", "c", "d"]
LABELS = np.array([1, 0, 1, 0])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_split(tmp_path, face_id=FACES, label=LABELS, part=[FIT, VALIDATION, HELDOUT, FIT])
    return tmp_path


def test_columns_are_those_that_are_promised(model: Path) -> None:
    table = pq.read_table(model / SPLIT)
    assert table.schema.equals(pa.schema({"face_id": pa.string(), "label": pa.int64(), "part": pa.string()}))
    assert table.column("part").to_pylist() == ["fit", "validation", "heldout", "fit"]


def test_labels_are_those_of_the_parts_asked_for(model: Path) -> None:
    split = read_split(model, num_classes=2)
    assert split.label.tolist() == LABELS.tolist()
    asked = pa.array(["d", "nobody", "c", "a"])
    assert split.labels_of(asked, [FIT]).tolist() == [0, NO_LABEL, NO_LABEL, 1]
    assert split.labels_of(asked, [FIT, HELDOUT]).tolist() == [0, NO_LABEL, 1, 1]
    assert split.faces_outside(FIT) == {"b", "c"}


def test_the_folder_of_the_calibration_model_is_the_whole_where_there_is_none(tmp_path: Path) -> None:
    assert of_calibration(tmp_path) == tmp_path
    (tmp_path / "calibration").mkdir()
    assert of_calibration(tmp_path) == tmp_path / "calibration"


def test_a_split_without_faces_has_no_labels(tmp_path: Path) -> None:
    write_split(tmp_path, face_id=[], label=LABELS[:0], part=[])
    split = read_split(tmp_path, num_classes=2)
    assert split.labels_of(pa.array(["a"]), [FIT]).tolist() == [NO_LABEL]
    assert split.faces_outside(FIT) == frozenset()


def test_what_is_no_split_is_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has labels from 0 to 1, expected 0 to 0; run train_primitive again"):
        read_split(model, num_classes=1)
    with pytest.raises(DataError, match=r"does not exist: .* is no primitive learner; run train_primitive"):
        read_split(tmp_path / "nowhere")
    (model / SPLIT).write_bytes(b"PAR1")
    with pytest.raises(DataError, match="no readable Parquet"):
        read_split(model)
