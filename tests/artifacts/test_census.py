"""What became of a set's samples comes back as it was written; a file of another form is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fer_pipeline.artifacts.census import (
    RejectedSample,
    SourceLabel,
    SplitCensus,
    read_census,
    read_shared,
    write_census,
)
from fer_pipeline.artifacts.contents import SharedCounts
from fer_pipeline.core.errors import DataError

SPLITS = {
    "test": SplitCensus(samples=1, faces=1, labels={"joy": 0}, unlabelled=1, rejected={}),
    "train": SplitCensus(samples=5, faces=2, labels={"joy": 2}, unlabelled=0, rejected={"no_face": 2, "empty": 1}),
}
REJECTED = [
    RejectedSample(f"{number}", "x.png", "train", reason) for number, reason in enumerate(("empty", *["no_face"] * 2))
]


def test_counts_come_back_with_their_sums(tmp_path: Path) -> None:
    write_census(tmp_path, SPLITS, REJECTED, {"Happy": SourceLabel(5, "joy")}, {"test": SharedCounts(2, 1)})
    assert read_census(tmp_path / "summary.json") == SPLITS
    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert (content["samples"], content["faces"], content["rejected"]) == (6, 3, {"empty": 1, "no_face": 2})
    assert content["source_labels"] == {"Happy": {"meaning": "joy", "samples": 5}}
    assert read_shared(tmp_path / "summary.json") == {"test": SharedCounts(2, 1)}
    assert pq.read_table(tmp_path / "rejected.parquet").to_pylist() == [row._asdict() for row in REJECTED]


def test_a_set_without_rejected_samples_keeps_the_columns(tmp_path: Path) -> None:
    write_census(tmp_path, SPLITS, [], {}, {})
    assert pq.read_table(tmp_path / "rejected.parquet").column_names == ["sample_id", "source", "split", "reason"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"splits": {"train": {"samples": "x"}}}'])
def test_another_file_is_one_line_with_the_command(content: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(DataError, match=r"set\.json holds no counts of an aligned data set .*; run: dvc repro align$"):
        read_census(tmp_path / "set.json")
