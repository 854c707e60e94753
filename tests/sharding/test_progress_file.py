"""The progress file of a stage without shards: what a watcher outside reads while it runs, and how it ended."""

import json
from pathlib import Path

import pytest

from fer_pipeline.core.progress import progress
from fer_pipeline.sharding.run import ProgressFile


def _read(store: Path) -> dict[str, object]:
    return json.loads((store / "progress" / "distill@aux.json").read_text(encoding="utf-8"))


def test_a_progress_in_the_block_is_told_while_it_runs_and_at_its_end(tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "distill", "aux").follow():
        with progress("distill", 8, "outer steps") as advance:
            advance(3)
            during = _read(tmp_path)
            advance(5)
    after = _read(tmp_path)
    assert (during["done"], during["total"], during["unit"], during["state"]) == (3, 8, "outer steps", "running")
    assert (after["done"], after["state"]) == (8, "finished")


def test_a_fault_in_the_block_is_told(tmp_path: Path) -> None:
    def fall() -> None:
        with ProgressFile(tmp_path, "distill", "aux").follow(), progress("distill", 8, "outer steps") as advance:
            advance(3)
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        fall()
    assert (_read(tmp_path)["done"], _read(tmp_path)["state"]) == (3, "failed")


def test_nothing_is_written_where_nothing_was_heard_nor_after_the_block(tmp_path: Path) -> None:
    with ProgressFile(tmp_path, "distill", "aux").follow():
        pass
    with progress("distill", 8, "outer steps") as advance:
        advance(8)
    assert not (tmp_path / "progress").exists()
