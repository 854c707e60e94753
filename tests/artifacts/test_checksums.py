"""Finished shards that were changed from outside are noticed, those that were only touched are not made again."""

import os
from pathlib import Path

import pytest

from fer_pipeline.artifacts import store as module
from fer_pipeline.artifacts.store import Origin, Store

KEY = "ab" + "0" * 30


def made(root: Path) -> Path:
    store = Store(root, owner="stage@set")
    store.make(KEY, lambda path: path.write_bytes(b"0123456789"), origin=Origin(items=10, device="cpu"))
    return store.shard(KEY)


def test_checksums_record_where_a_shard_came_from(tmp_path: Path) -> None:
    made(tmp_path)
    checksums = Store(tmp_path).checksums(KEY)
    assert checksums is not None
    origin = checksums.origin
    assert (origin.owner, origin.items, origin.device, checksums.size) == ("stage@set", 10, "cpu", 10)
    assert checksums.files[""][2] == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"  # sha256sum's


@pytest.mark.parametrize("content", [b"012345678", b"", b"01234567890"])
def test_another_size_is_noticed_at_every_use(tmp_path: Path, content: bytes) -> None:
    shard = made(tmp_path)
    shard.write_bytes(content)
    store = Store(tmp_path)
    assert not store.has(KEY)
    assert store.damaged == {KEY}
    assert not shard.exists()
    assert store.make(KEY, lambda path: path.write_bytes(b"again")) is False
    assert Store(tmp_path).has(KEY)


def test_other_bytes_of_the_same_size_are_noticed_by_their_time_or_when_asked(tmp_path: Path) -> None:
    shard = made(tmp_path)
    state = shard.stat()
    shard.write_bytes(b"0123456x89")
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Store(tmp_path).has(KEY), "believed by size and time"
    assert not Store(tmp_path, verify=True).has(KEY)
    shard = made(tmp_path)
    shard.write_bytes(b"0123456x89")
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert not Store(tmp_path).has(KEY)


def test_a_shard_that_was_only_touched_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(made(tmp_path), ns=(1, 1))
    assert Store(tmp_path).has(KEY)
    monkeypatch.setattr(module, "file_sha256", lambda path: pytest.fail("hashed again"))
    assert Store(tmp_path).has(KEY)


def test_a_folder_has_checksums_of_all_its_files(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "inside").mkdir()
        (folder / "a").write_bytes(b"a")
        (folder / "inside" / "b").write_bytes(b"b")

    store = Store(tmp_path)
    store.make(KEY, fill, folder=True)
    assert Store(tmp_path).has(KEY)
    (store.shard(KEY) / "inside" / "b").unlink()
    assert not Store(tmp_path).has(KEY)
    store = Store(tmp_path)
    store.make(KEY, fill, folder=True)
    (store.shard(KEY) / "more").touch()
    assert not Store(tmp_path).has(KEY)


def test_a_shard_without_readable_checksums_is_reused(tmp_path: Path) -> None:
    """Stores of versions that recorded none, or recorded them elsewhere, are still read."""
    made(tmp_path)
    next((tmp_path / "checksums").rglob("*.json")).write_text("[half", encoding="utf-8")
    assert Store(tmp_path).has(KEY)
