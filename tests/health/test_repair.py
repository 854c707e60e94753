"""A bit flipped where nobody looks: DVC sees nothing, fsck does, and the command that it prints truly repairs."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Flip = Callable[[Path], None]
SHARD = "out/numbers/shard"


def repaired(project: Any, before: dict[str, bytes], *words: str) -> dict[str, Any]:
    """Runs what fsck prints, and compares every byte; what fsck had found."""
    found = project.fsck(*words)
    assert found["findings"], found
    project.shell(found["repair"])
    again = project.fsck(*words, code=0)
    assert again["findings"] == []
    assert project.bytes() == before
    return found


@pytest.mark.parametrize("has_remote", [True, False], ids=["pull", "repro"])
def test_a_flipped_bit_of_one_inode_with_three_names(repository: Any, flip: Flip, has_remote: bool) -> None:
    project = repository("hardlink")
    if not has_remote:
        (project / ".dvc/config").write_text("[cache]\n    type = hardlink\n", encoding="utf-8")
    before, damaged = project.bytes(), project.object(SHARD)
    assert damaged.samefile(project / SHARD)
    assert damaged.samefile(project / ".store/shards/ab/ab12")
    if has_remote:
        project.shell("dvc status")  # DVC has seen the files at this place
    flip(damaged)
    if has_remote:
        assert "up to date" in project.shell("dvc status"), "DVC does not notice"
    found = repaired(project, before)
    (finding,) = found["findings"]
    assert (finding["kind"], finding["out"], finding["stage"]) == ("damaged", SHARD, "numbers")
    assert finding["expected"] == "md5 96d9f3cd2c28748e81d86852ab2e1636"
    assert Path(finding["path"]) == damaged
    command = "dvc pull out/numbers" if has_remote else "dvc repro numbers"
    assert found["repair"] == f"python -m fer_pipeline fsck --remove && {command}"


def test_a_remote_with_the_same_damage_is_not_pulled_from(repository: Any, flip: Flip) -> None:
    project = repository("hardlink")
    before = project.bytes()
    for remote in (False, True):
        flip(project.object(SHARD, remote=remote))
    found = repaired(project, before, "--remote", "kept")
    assert [finding["place"] for finding in found["findings"]] == ["cache", "remote"]
    assert found["repair"].endswith("fsck --remote kept --remove && dvc repro numbers && dvc push -r kept out/numbers")


def test_damage_in_a_copied_cache_is_repaired_from_the_workspace(repository: Any, flip: Flip) -> None:
    project = repository("copy")
    before = project.bytes()
    flip(project.object(SHARD))
    flip(project.object("out/numbers"))  # the list of the folder: its files prove what it listed
    found = repaired(project, before)
    assert len(found["findings"]) == 2
    assert found["repair"].endswith("--remove && dvc commit out/numbers")


def test_a_copied_file_that_differs_is_put_back_although_its_time_is_the_same(repository: Any, flip: Flip) -> None:
    project = repository("copy")
    (project / ".dvcignore").write_text("*.tmp\n", encoding="utf-8")
    (project / "out/numbers/ignored.tmp").write_text("DVC is told not to look")
    before = project.bytes()
    project.shell("dvc status")
    flip(project / SHARD)
    project.shell("dvc checkout --force")
    assert project.bytes() != before, "DVC alone does not put it back"
    (project / "out/numbers/strange").write_text("nobody promised it")
    flipped, strange = repaired(project, before)["findings"]
    assert (flipped["kind"], flipped["repair"]) == ("changed", f"touch {SHARD} && dvc checkout --force out/numbers")
    assert (strange["kind"], strange["out"]) == ("changed", "out/numbers/strange")


@pytest.mark.parametrize("has_remote", [True, False], ids=["fetch", "repro"])
def test_damage_in_cache_and_workspace_apart(repository: Any, flip: Flip, has_remote: bool) -> None:
    project = repository("copy")
    if not has_remote:
        (project / ".dvc/config").write_text("[cache]\n    type = copy\n", encoding="utf-8")
    before = project.bytes()
    project.shell("dvc status")
    flip(project.object(SHARD))
    flip(project / "out/numbers/two")
    flip(project / "out/sums.txt")
    kinds = [finding["kind"] for finding in repaired(project, before)["findings"]]
    assert kinds == ["damaged", "changed", "changed"]


def test_damage_in_a_shard_of_the_store_alone(repository: Any, flip: Flip) -> None:
    project = repository("copy")
    before = project.bytes()
    flip(project / ".store/shards/ab/ab12")
    (finding,) = repaired(project, before)["findings"]
    assert (finding["place"], finding["stage"]) == ("store", "numbers@demo")
    assert not (project / ".store/shards/ab/ab12").exists()
    assert not (project / ".store/checksums/ab/ab12.json").exists()


def test_a_remote_is_repaired_by_a_push(repository: Any, flip: Flip) -> None:
    project = repository("hardlink")
    before = project.bytes()
    flip(project.object(SHARD, remote=True))
    assert project.fsck(code=0)["findings"] == []
    project.shell("dvc push")
    assert project.bytes() != before, "DVC alone takes it to be there"
    (finding,) = repaired(project, before, "--remote", "kept")["findings"]
    assert (finding["place"], finding["kind"], finding["out"]) == ("remote", "damaged", SHARD)


def test_files_that_are_missing(repository: Any) -> None:
    project = repository("hardlink")
    before = project.bytes()
    os.unlink(project / SHARD)
    (finding,) = project.fsck()["findings"]
    assert (finding["kind"], finding["repair"]) == ("missing", "dvc checkout out/numbers")
    project.object(SHARD, remote=True).unlink()
    assert [one["place"] for one in repaired(project, before, "--remote", "kept")["findings"]] == [
        "workspace",
        "remote",
    ]
    shutil.rmtree(project / "out")
    shutil.rmtree(project / ".dvc/cache/files")
    found = repaired(project, before)
    assert [finding["kind"] for finding in found["findings"]] == ["missing", "missing"]
    assert found["repair"] == "dvc pull out/numbers out/sums.txt"
