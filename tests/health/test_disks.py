"""Room and links: every level by facts of the test's own, and what this machine has against other sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.health import disks
from fer_pipeline.health.dvc_config import DvcConfig, read_config
from fer_pipeline.health.finding import Place

GB = 1_000_000_000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.lock").write_text(
        "stages: {a: {outs: [{path: o, hash: md5, md5: x, size: 3000000000}]}}", encoding="utf-8"
    )
    return Place(tmp_path)


@pytest.mark.parametrize(("free", "level"), [(50 * GB, "ok"), (5 * GB, "warning"), (GB // 2, "problem")])
def test_space(place: Place, free: int, level: str) -> None:
    assert disks.space(place, usage=lambda _: (100 * GB, 100 * GB - free, free)).level == level


def test_space_is_that_of_this_disk(place: Place) -> None:
    total = shutil.disk_usage(place.root).total / GB
    assert f"of {total:,.1f} GB are free" in disks.space(place).found


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [(0, 0, "ok"), (10**6, 10**5, "ok"), (10**6, 40_000, "warning"), (10**6, 9_999, "problem")],
)
def test_inodes(place: Place, total: int, free: int, level: str) -> None:
    assert disks.inodes(place, counted=lambda _: (total, free)).level == level


def test_inodes_are_those_of_this_disk(place: Place) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%c", str(place.root)], capture_output=True, text=True, check=True)
    total = int(told.stdout)
    assert (f"of {total:,} are free" in disks.inodes(place).found) == (total > 0)


def only(*kinds: str):
    return lambda kind, source, out: kind in kinds


@pytest.mark.parametrize(
    ("types", "there", "level", "words"),
    [
        (None, ("reflink", "hardlink", "copy"), "ok", "by reflink (cache.type: not set"),
        (None, ("hardlink", "copy"), "warning", "every output lies on the disk twice, 3.0 GB more"),
        ("hardlink,copy", ("hardlink", "copy"), "ok", "by hardlink"),
        ("reflink,hardlink,copy", ("hardlink", "copy"), "warning", "by copy"),
        ("reflink,hardlink,copy", ("reflink", "hardlink", "copy"), "ok", "by reflink"),
        ("hardlink,copy", ("copy",), "warning", "neither links nor reflinks"),
        ("hardlink", ("copy",), "problem", "no type of cache.type (hardlink) works here"),
    ],
)
def test_links(place: Place, types: str | None, there: tuple[str, ...], level: str, words: str) -> None:
    if types:
        (place.root / ".dvc/config").write_text(f'[cache]\ntype = "{types}"\n', encoding="utf-8")
    found = disks.links(place, works=only(*there))
    assert found.level == level
    assert words in found.found
    assert sorted(path.name for path in place.root.iterdir()) == [".dvc", "dvc.lock"], "the trial leaves nothing"


@pytest.mark.parametrize("types", ["hardlink,copy", "reflink,hardlink,copy"])
def test_links_are_told_as_dvc_makes_them(place: Place, types: str) -> None:
    """A stage's file lies once on the disk just where `doctor` says so."""
    (place.root / ".dvc/config").write_text(f'[cache]\ntype = "{types}"\n', encoding="utf-8")
    (place.root / "dvc.lock").unlink()
    (place.root / "dvc.yaml").write_text("stages: {a: {cmd: mkdir o && echo 1 > o/f, outs: [o]}}\n", encoding="utf-8")
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(place.root / "site"), "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["git", "init", "-q", "."], cwd=place.root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=place.root, env=environment, check=True)
    kind = disks.link_type(read_config(place.root), place.root)
    if kind == "reflink":
        pytest.skip("reflinks share no inode to tell them by")
    assert ((place.root / "o/f").stat().st_nlink > 1) == (kind != "copy")


def test_a_cache_on_another_file_system_is_named(place: Place) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == place.root.stat().st_dev:
        pytest.skip("no second file system here")
    (place.root / ".dvc/config").write_text(f"[cache]\ndir = {shared}/no-such-cache\n", encoding="utf-8")
    found = disks.links(place)
    assert (found.level, "another file system" in found.found) == ("warning", True)
    assert not (shared / "no-such-cache").exists()


def test_a_link_that_works_is_one(place: Place, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    os.link(tmp_path / "a", tmp_path / "b")  # this file system can
    (tmp_path / "b").unlink()
    assert disks.works("hardlink", tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    config = DvcConfig(tmp_path, {}, link_types=("hardlink",))
    assert disks.link_type(config, tmp_path) == "hardlink"


@pytest.mark.parametrize(
    ("kind", "level"), [("ext4", "ok"), ("nfs4", "ok"), ("overlay", "warning"), ("tmpfs", "warning")]
)
def test_site_cache(place: Place, kind: str, level: str) -> None:
    found = disks.site_cache(place, kind_of=lambda _: kind)
    assert found.level == level
    assert ("3.0 GB are hashed again, 8 s" in found.found) == (level == "warning")
    seen: list[Path] = []
    (place.root / ".dvc/config").write_text("[core]\nsite_cache_dir = /kept\n", encoding="utf-8")
    disks.site_cache(place, kind_of=lambda path: seen.append(path) or kind)
    assert seen == [Path("/kept")]


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("overlay / overlay rw 0 0\n/dev/a /data ext4 rw 0 0\nn /data/a\\040b nfs4 rw 0 0\n")
    kinds = {
        path: disks.file_system(Path(path), mounts=mounts) for path in ("/x", "/data/x", "/data/a b/x", "/database")
    }
    assert kinds == {"/x": "overlay", "/data/x": "ext4", "/data/a b/x": "nfs4", "/database": "overlay"}
    told = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True)
    assert disks.file_system(tmp_path)[:3] == told.stdout.strip()[:3]
