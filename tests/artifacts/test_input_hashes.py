"""The hash of inputs follows the bytes, is remembered by size, time and inode, and reads again when told to."""

import os
from pathlib import Path

import pytest

from fer_pipeline.artifacts import input_hashes as contents
from fer_pipeline.artifacts.input_hashes import Contents
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample


def sample(path: Path, offset: int = 0, length: int = -1) -> Sample:
    return Sample(str(path), "train", None, None, path, offset, length)


def test_only_the_bytes_in_range_count(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"0123xxxx89")
    memory = Contents(tmp_path / "memory")
    assert memory.of([sample(tmp_path / "a", 0, 4)]) == memory.of([sample(tmp_path / "b", 0, 4)])
    assert memory.of([sample(tmp_path / "a", 0, 5)]) != memory.of([sample(tmp_path / "b", 0, 5)])
    assert memory.of([sample(tmp_path / "a", 8, 2)]) == memory.of([sample(tmp_path / "b", 8, 2)])
    assert memory.of([sample(tmp_path / "a")]) != memory.of([sample(tmp_path / "b")])
    assert memory.of([sample(tmp_path / "a", 0, 10)]) == memory.of([sample(tmp_path / "a")])


def test_what_is_remembered_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"before")
    first = Contents(tmp_path / "memory")
    known = first.of([sample(file)])
    first.save()
    state = file.stat()
    with file.open("r+b") as stream:  # the same inode and size
        stream.write(b"after!")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Contents(tmp_path / "memory").of([sample(file)]) == known, "believed by size, time and inode"
    assert Contents(tmp_path / "memory", verify=True).of([sample(file)]) != known
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert Contents(tmp_path / "memory").of([sample(file)]) != known
    monkeypatch.setattr(contents, "_blocks", lambda part: pytest.fail("read"))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Contents(tmp_path / "memory").of([sample(file)]) == known


def test_an_unreadable_file_is_not_remembered(tmp_path: Path) -> None:
    first = Contents(tmp_path / "memory")
    absent = first.of([sample(tmp_path / "a")])
    first.save()
    (tmp_path / "a").write_bytes(b"x")
    assert Contents(tmp_path / "memory").of([sample(tmp_path / "a")]) != absent


def test_a_damaged_memory_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("[half", encoding="utf-8")
    (tmp_path / "a").write_bytes(b"x")
    assert Contents(tmp_path / "memory").of([sample(tmp_path / "a")])


def test_a_whole_file_is_its_sha256_and_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with Contents(tmp_path / "memory") as first:
        assert first.of_file(tmp_path / "a") == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"
        with pytest.raises(DataError, match="cannot be read"):
            first.of_file(tmp_path / "absent")
    monkeypatch.setattr(contents, "_blocks", lambda part: pytest.fail("read"))
    assert Contents(tmp_path / "memory").of_file(tmp_path / "a").startswith("84d89877")


def test_a_pass_that_fails_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops after its first shard must not cost the next run the reading of all others."""
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    with Contents(tmp_path / "memory") as whole:
        both = [whole.of_file(tmp_path / name) for name in "ab"]
    stopped = Contents(tmp_path / "memory")
    stopped.of_file(tmp_path / "a")
    stopped.__exit__(KeyboardInterrupt)
    monkeypatch.setattr(contents, "_blocks", lambda part: pytest.fail("read"))
    again = Contents(tmp_path / "memory")
    assert [again.of_file(tmp_path / name) for name in "ab"] == both
