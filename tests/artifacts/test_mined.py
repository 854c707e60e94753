"""Mined rows, the sweep and the summary on disk."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.mined import MINED, RuleSweep, mined_schema, read_rows, read_summary, sweep_table
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_json

CLASSES = ("anger", "fear")
SUMMARY = {
    "classes": [*CLASSES],
    "margins": {"anger": 0.2, "fear": None},
    "pools": {
        "p": {
            **{"faces": 4, "excluded": 0, "no_direction": 0, "below_margin": 2, "over_cap": 0, "kept": 2},
            "by_class": {"anger": 2, "fear": 0},
        }
    },
    "kept": 2,
    "by_class": {
        "anger": {"kept": 2, "precision": 0.5, "low": 0.25, "high": 0.75},
        "fear": {"kept": 0, "precision": None, "low": None, "high": None},
    },
    "precision": {"estimate": 0.5, "low": 0.25, "high": 0.75},
    "seed": 1,
}


def table() -> pa.Table:
    columns = [
        pa.array(["p/1", "p/2"]),
        pa.array(["p", "p"]),
        pa.array([0, 1]),
        pa.array([0.5, 0.25], pa.float32()),
        pa.array([0.25, 0.125], pa.float32()),
        pa.array([1, 1]),
    ]
    return pa.Table.from_arrays(columns, schema=mined_schema(CLASSES))


def test_rows_come_back_with_class_names(tmp_path: Path) -> None:
    write_rows(tmp_path / MINED, table())
    assert read_rows(tmp_path, MINED, classes=CLASSES).equals(table(), check_metadata=True)
    assert pq.read_table(tmp_path / MINED).to_pydict()["face_id"] == ["p/1", "p/2"]
    first = (tmp_path / MINED).read_bytes()
    write_rows(tmp_path / MINED, table())
    assert (tmp_path / MINED).read_bytes() == first


def test_other_classes_and_absence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run mine"):
        read_rows(tmp_path, MINED, classes=CLASSES)
    write_rows(tmp_path / MINED, table())
    with pytest.raises(DataError, match="rerun mine"):
        read_rows(tmp_path, MINED, classes=("fear", "anger"))


def test_sweep_has_a_row_for_all_and_for_each_class_of_each_rule() -> None:
    interval = np.full((2, 2, 3), np.nan)
    interval[0, 0] = (0.5, 0.4, 0.6)
    sweep = RuleSweep(
        threshold=np.array([0.0, np.inf]),
        kept=np.array([[3, 4], [1, 0]]),
        heldout=np.array([[10, 0], [5, 0]]),
        interval=interval,
        overall=np.array([[0.5, 0.4, 0.6], [np.nan] * 3]),
    )
    found = sweep_table(CLASSES, {"margin": sweep, "probability": sweep}).to_pylist()
    assert [(row["step"], row["threshold"], row["class"], row["kept"], row["heldout"]) for row in found[:6]] == [
        (0, 0.0, "*", 7, 10),
        (0, 0.0, "anger", 3, 10),
        (0, 0.0, "fear", 4, 0),
        (1, None, "*", 1, 5),
        (1, None, "anger", 1, 5),
        (1, None, "fear", 0, 0),
    ]
    assert [row["precision"] for row in found[:6]] == [0.5, 0.5, None, None, None, None]
    assert found[1]["low"] == 0.4
    assert found[1]["high"] == 0.6
    assert [row["rule"] for row in found] == ["margin"] * 6 + ["probability"] * 6


def test_summary_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", SUMMARY)
    assert read_summary(tmp_path) == SUMMARY


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ["anger"]}, "it does not count every one of its classes"),
        ({"kept": -1}, "kept: Input should be greater than or equal to 0"),
        ({"kept": "2"}, "kept: Input should be a valid integer"),
        ({"margins": {"anger": 0.2}}, "it does not count every one of its classes"),
        ({"pools": {"p": []}}, "pools.p: Input should be a valid dictionary"),
        ({"precision": {"estimate": 7, "low": None, "high": None}}, "precision.estimate: Input should be less than"),
        ({"by_class": None}, "by_class: Input should be a valid dictionary"),
        ({"rules": {"margin": {}}}, "the key 'rules.margin.threshold' is missing"),
        ({"rules": {"luck": {}}}, "rules.luck.*Input should be 'margin'"),
    ],
)
def test_a_summary_of_another_form_is_one_line(tmp_path: Path, change: dict[str, object], told: str) -> None:
    write_json(tmp_path / "summary.json", {**SUMMARY, **change})
    with pytest.raises(DataError, match=f"is no summary of mined faces .*{told}"):
        read_summary(tmp_path)


def test_rows_with_labels_of_nobody_are_refused(tmp_path: Path) -> None:
    for label in (-1, 2, 2**40):
        right = table()
        write_rows(tmp_path / MINED, right.set_column(2, right.schema.field(2), pa.array([0, label])))
        with pytest.raises(DataError, match="has labels that are none of 2 classes; rerun mine"):
            read_rows(tmp_path, MINED, classes=CLASSES)
