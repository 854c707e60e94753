"""Hashes from dvc.lock, the commit from git, and what is said where there is neither."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.reporting.lineage import NO_GIT, load_stages, read_commit, read_lineage


def test_stages_and_hashes_of_the_lock(whole: Any) -> None:
    [mine] = load_stages(whole.project.root / "dvc.lock")  # the report's own entry is that of an earlier run
    assert mine.name == "mine"
    assert [(path, digest[:8]) for path, digest in (*mine.reads.items(), *mine.writes.items())] == [
        ("data/scores", "01234567"),
        ("data/mined", "fedcba98"),
    ]
    assert "fedcba987654" in whole.page
    assert "deadbeef" not in whole.page


def test_damaged_lock_is_an_error_of_one_line(tmp_path: Path) -> None:
    assert load_stages(tmp_path / "dvc.lock") == ()
    for text in ("stages: [", "stages: {a: {deps: [{}]}}"):
        (tmp_path / "dvc.lock").write_text(text)
        with pytest.raises(DataError, match="is broken"):
            load_stages(tmp_path / "dvc.lock")


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert read_commit(tmp_path) == NO_GIT

    def git(*words: str) -> str:
        named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *named, *words], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    assert read_commit(tmp_path) == NO_GIT  # nothing is committed yet
    for name in ("a", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD").strip()
    assert read_commit(tmp_path) == head
    (tmp_path / "dvc.lock").write_text("2")
    assert read_commit(tmp_path) == head  # the run itself changes it
    (tmp_path / "a").write_text("2")
    assert read_commit(tmp_path) == f"{head}, with uncommitted changes"


def test_params_are_shown_as_written_or_as_understood(whole: Any, tmp_path: Path) -> None:
    world = whole.project.world
    assert "street" in read_lineage(tmp_path, world).params
    (tmp_path / "params.yaml").write_text("seeds: [1] # mine\n")
    assert read_lineage(tmp_path, world).params == "seeds: [1] # mine\n"
