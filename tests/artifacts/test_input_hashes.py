"""The hash of inputs follows the bytes, is remembered by size, time and inode, and reads again when told to."""

import os
from pathlib import Path

import pytest

from fer_pipeline.artifacts import input_hashes as module
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample


def sample(path: Path, offset: int = 0, length: int = -1) -> Sample:
    return Sample(str(path), "train", None, None, path, offset, length)


def test_only_the_bytes_in_range_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"0123xxxx89")
    memory = InputHashes(tmp_path / "memory")
    assert memory.hash_samples([sample(tmp_path / "a", 0, 4)]) == memory.hash_samples([sample(tmp_path / "b", 0, 4)])
    assert memory.hash_samples([sample(tmp_path / "a", 0, 5)]) != memory.hash_samples([sample(tmp_path / "b", 0, 5)])
    assert memory.hash_samples([sample(tmp_path / "a", 8, 2)]) == memory.hash_samples([sample(tmp_path / "b", 8, 2)])
    assert memory.hash_samples([sample(tmp_path / "a")]) != memory.hash_samples([sample(tmp_path / "b")])
    assert memory.hash_samples([sample(tmp_path / "a", 0, 10)]) == memory.hash_samples([sample(tmp_path / "a")])


def test_what_is_remembered_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"before")
    with InputHashes(tmp_path / "memory") as first:
        known = first.hash_samples([sample(file)])
    state = file.stat()
    with file.open("r+b") as stream:  # the same inode and size
        stream.write(b"after!")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert InputHashes(tmp_path / "memory").hash_samples([sample(file)]) == known, "believed by size, time and inode"
    assert InputHashes(tmp_path / "memory", verify=True).hash_samples([sample(file)]) != known
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert InputHashes(tmp_path / "memory").hash_samples([sample(file)]) != known
    monkeypatch.setattr(module, "_hash", lambda *part: pytest.fail("read"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert InputHashes(tmp_path / "memory").hash_samples([sample(file)]) == known


def test_an_unreadable_file_is_not_remembered(tmp_path: Path) -> None:
    with InputHashes(tmp_path / "memory") as first:
        absent = first.hash_samples([sample(tmp_path / "a")])
    (tmp_path / "a").write_bytes(b"x")
    assert InputHashes(tmp_path / "memory").hash_samples([sample(tmp_path / "a")]) != absent


def test_a_damaged_memory_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("[half", encoding="utf-8")
    (tmp_path / "a").write_bytes(b"x")
    assert InputHashes(tmp_path / "memory").hash_samples([sample(tmp_path / "a")])


def test_a_whole_file_is_its_sha256_and_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with InputHashes(tmp_path / "memory") as first:
        assert first.hash_file(tmp_path / "a") == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
        with pytest.raises(DataError, match="cannot be read"):
            first.hash_file(tmp_path / "absent")
    monkeypatch.setattr(module, "_hash", lambda *part: pytest.fail("read"))
    assert InputHashes(tmp_path / "memory").hash_file(tmp_path / "a").startswith("84d89877")


def test_a_pass_that_fails_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops after its first shard must not cost the next run the reading of all others."""
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    with InputHashes(tmp_path / "memory") as whole:
        both = [whole.hash_file(tmp_path / name) for name in "ab"]
    stopped = InputHashes(tmp_path / "memory")
    stopped.hash_file(tmp_path / "a")
    stopped.__exit__(KeyboardInterrupt)
    monkeypatch.setattr(module, "_hash", lambda *part: pytest.fail("read"))
    again = InputHashes(tmp_path / "memory")
    assert [again.hash_file(tmp_path / name) for name in "ab"] == both
