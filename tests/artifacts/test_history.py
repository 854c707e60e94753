"""Histories and timings give back what was written, and a damaged file is an error of one line."""

import math
from pathlib import Path

import pytest

from fer_pipeline.artifacts.history import read_history, read_timings, write_history, write_timings
from fer_pipeline.core.errors import DataError


def test_history_comes_back_in_full(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "train_loss": 1 / 3}, {"epoch": 2, "train_loss": 1e-17}]
    write_history(tmp_path, rows)
    assert read_history(tmp_path) == rows
    (tmp_path / "history.csv").write_text("epoch,loss\n1,\n")
    assert math.isnan(read_history(tmp_path)[0]["loss"])


@pytest.mark.parametrize("content", [b"epoch\nx\n", b"epoch\n1,2\n", b"epoch\n\xff\n"])
def test_a_damaged_history_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(DataError, match="no table of numbers"):
        read_history(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_history(tmp_path / "none")


def test_timings_come_back_by_seed(tmp_path: Path) -> None:
    figures = {"seconds_per_epoch": 1.5, "seconds_per_step": 0.1, "steps_per_epoch": 15.0, "steps": 100.0}
    about = {"device": "cpu", "times_seen": {"labelled": 4.5, "mined": 1.0}, "stopped_rising": None}
    write_timings(tmp_path / "vas.json", "vas", {10: {**figures, **about}})
    assert read_timings(tmp_path / "vas.json") == [(figures, 4.5, None, None)], "of before peak memory was recorded"
    write_timings(tmp_path / "vas.json", "vas", {10: {**figures, **about, "peak_memory_bytes": 7}})
    assert read_timings(tmp_path / "vas.json")[0].peak_memory == 7
