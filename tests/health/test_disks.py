"""Room and links: every level by facts of the test's own, and what this machine has against other sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fer_pipeline.health import machine
from fer_pipeline.health.dvc_project import DvcConfig, read_config
from fer_pipeline.health.software import CheckContext

GB = 1_000_000_000


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckContext:
    for level in ("SYSTEM", "GLOBAL"):
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.lock").write_text(
        "stages: {a: {outs: [{path: o, hash: md5, md5: x, size: 3000000000}]}}", encoding="utf-8"
    )
    return CheckContext(tmp_path)


@pytest.mark.parametrize(("free", "level"), [(50 * GB, "ok"), (5 * GB, "warning"), (GB // 2, "problem")])
def test_space(context: CheckContext, free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (100 * GB, 100 * GB - free, free))
    assert machine.check_space(context).level == level


def test_space_is_that_of_this_disk(context: CheckContext) -> None:
    total = shutil.disk_usage(context.root).total / GB
    assert f"of {total:,.1f} GB are free" in machine.check_space(context).message


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [(0, 0, "ok"), (10**6, 10**5, "ok"), (10**6, 40_000, "warning"), (10**6, 9_999, "problem")],
)
def test_inodes(context: CheckContext, total: int, free: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=total, f_favail=free))
    assert machine.check_inodes(context).level == level


def test_inodes_are_those_of_this_disk(context: CheckContext) -> None:
    result = subprocess.run(["stat", "-f", "-c", "%c", str(context.root)], capture_output=True, text=True, check=True)
    total = int(result.stdout)
    assert (f"of {total:,} are free" in machine.check_inodes(context).message) == (total > 0)


@pytest.mark.parametrize(
    ("types", "there", "level", "words"),
    [
        (None, ("reflink", "hardlink", "copy"), "ok", "by reflink (cache.type: not set"),
        (None, ("hardlink", "copy"), "warning", "every output is on the disk twice, 3.0 GB more"),
        ("hardlink,copy", ("hardlink", "copy"), "ok", "by hardlink"),
        ("reflink,hardlink,copy", ("hardlink", "copy"), "warning", "by copy"),
        ("reflink,hardlink,copy", ("reflink", "hardlink", "copy"), "ok", "by reflink"),
        ("hardlink,copy", ("copy",), "warning", "neither links nor reflinks"),
        ("hardlink", ("copy",), "problem", "no type of cache.type (hardlink) works here"),
    ],
)
def test_links(
    context: CheckContext,
    types: str | None,
    there: tuple[str, ...],
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "can_link", lambda kind, source, out: kind in there)
    if types:
        (context.root / ".dvc/config").write_text(f'[cache]\ntype = "{types}"\n', encoding="utf-8")
    finding = machine.check_links(context)
    assert finding.level == level
    assert words in finding.message
    assert sorted(path.name for path in context.root.iterdir()) == [".dvc", "dvc.lock"], "the trial leaves nothing"


@pytest.mark.parametrize("types", ["hardlink,copy", "reflink,hardlink,copy"])
def test_links_are_reported_as_dvc_makes_them(context: CheckContext, types: str) -> None:
    """A stage's file lies once on the disk just where `doctor` says so."""
    (context.root / ".dvc/config").write_text(f'[cache]\ntype = "{types}"\n', encoding="utf-8")
    (context.root / "dvc.lock").unlink()
    (context.root / "dvc.yaml").write_text("stages: {a: {cmd: mkdir o && echo 1 > o/f, outs: [o]}}\n", encoding="utf-8")
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(context.root / "site"), "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["git", "init", "-q", "."], cwd=context.root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=context.root, env=environment, check=True)
    kind = machine.link_type(read_config(context.root), context.root)
    if kind == "reflink":
        pytest.skip("reflinks share no inode to tell them by")
    assert ((context.root / "o/f").stat().st_nlink > 1) == (kind != "copy")


def test_a_cache_on_another_file_system_is_named(context: CheckContext) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == context.root.stat().st_dev:
        pytest.skip("no second file system here")
    (context.root / ".dvc/config").write_text(f"[cache]\ndir = {shared}/no-such-cache\n", encoding="utf-8")
    finding = machine.check_links(context)
    assert (finding.level, "another file system" in finding.message) == ("warning", True)
    assert not (shared / "no-such-cache").exists()


def test_a_link_that_works_is_one(context: CheckContext, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    os.link(tmp_path / "a", tmp_path / "b")  # this file system can
    (tmp_path / "b").unlink()
    assert machine.can_link("hardlink", tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    config = DvcConfig(tmp_path, {}, link_types=("hardlink",))
    assert machine.link_type(config, tmp_path) == "hardlink"


@pytest.mark.parametrize(
    ("kind", "level"), [("ext4", "ok"), ("nfs4", "ok"), ("overlay", "warning"), ("tmpfs", "warning")]
)
def test_site_cache(context: CheckContext, kind: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, seen = context.root / "own", []
    folder.mkdir(0o700)
    monkeypatch.setattr(machine, "file_system", lambda path: seen.append(path) or kind)
    (context.root / ".dvc/config").write_text(f"[core]\nsite_cache_dir = {folder}\n", encoding="utf-8")
    finding = machine.check_site_cache(context)
    assert finding.level == level
    assert ("3.0 GB are hashed again, 8 s" in finding.message) == (level == "warning")
    assert seen == [folder]


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o710, None])
def test_a_site_cache_that_others_can_enter_is_told(context: CheckContext, mode: int | None) -> None:
    """Also one that is not there: DVC makes it for all users, and folders in it that all can write to."""
    folder = context.root / "shared"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    (context.root / ".dvc/config").write_text(f"[core]\nsite_cache_dir = {folder}\n", encoding="utf-8")
    finding = machine.check_site_cache(context)
    assert (finding.level, f"hashes in {folder} (" in finding.message) == ("warning", True)
    assert "other users can write there what DVC then unpickles" in finding.message
    assert finding.advice.startswith("mkdir -m 700 /var/tmp/dvc-")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    assert "unpickles" not in machine.check_site_cache(context).message
    (context.root / ".dvc/config").unlink()
    assert "hashes in /var/tmp/dvc (" in machine.check_site_cache(context).message


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "self" / "mounts"
    mounts.parent.mkdir()
    mounts.write_text("overlay / overlay rw 0 0\n/dev/a /data ext4 rw 0 0\nn /data/a\\040b nfs4 rw 0 0\n")
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
        kinds = {path: machine.file_system(Path(path)) for path in ("/x", "/data/x", "/data/a b/x", "/database")}
    assert kinds == {"/x": "overlay", "/data/x": "ext4", "/data/a b/x": "nfs4", "/database": "overlay"}
    result = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True, check=True)
    assert machine.file_system(tmp_path)[:3] == result.stdout.strip()[:3]
