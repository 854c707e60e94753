"""Two runs at once: the second is refused in one line that names the first; a dead run holds nothing."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.artifacts.store import Store
from fer_pipeline.commands import prune
from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding import locks
from fer_pipeline.sharding.locks import lock_exclusively, lock_for_run

HOLDER = """
import sys, time
from pathlib import Path
from fer_pipeline.sharding.locks import lock_for_run
with lock_for_run(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(1000)
"""


def holder(store: Path, owner: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store), owner], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_second_run_is_refused_and_others_are_not(tmp_path: Path) -> None:
    process = holder(tmp_path, "embed@street")
    try:
        message = (
            rf"another run of embed@street is at work on .*\(process {process.pid} on .*, since 20..-.*\); wait for it"
        )
        with pytest.raises(DataError, match=message) as raised, lock_for_run(tmp_path, "embed@street"):
            pass
        assert "\n" not in str(raised.value)
        with lock_for_run(tmp_path, "embed@studio"), lock_for_run(tmp_path, "align@street"):
            pass
        with (
            pytest.raises(DataError, match=rf"in use: embed@street is at work \(process {process.pid} "),
            lock_exclusively(tmp_path),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    with lock_for_run(tmp_path, "embed@street"):
        pass
    with lock_exclusively(tmp_path):
        pass


def test_a_run_that_failed_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_for_run(tmp_path, "embed@street"):
        1 / 0  # noqa: B018
    with (
        lock_for_run(tmp_path, "embed@street"),
        pytest.raises(DataError, match="embed@street"),
        lock_exclusively(tmp_path),
    ):
        pass


def test_who_comes_alone_sweeps_what_dead_runs_left(tmp_path: Path) -> None:
    left = tmp_path / "shards" / "ab" / ".abc.12345678.tmp"
    folder = tmp_path / "shards" / "ab" / ".xyz.12345678.tmp"
    finished = tmp_path / "shards" / "ab" / "abc"
    folder.mkdir(parents=True)
    for path in (left, folder / "faces.parquet", finished):
        path.write_bytes(b"half")
    process = holder(tmp_path / "elsewhere", "embed@street")
    process.kill()
    process.wait()
    with lock_for_run(tmp_path, "embed@street"):
        assert list((tmp_path / "shards").rglob("*")) == [finished.parent, finished]
        left.write_bytes(b"half")  # of this run
        with lock_for_run(tmp_path, "embed@studio"):
            assert left.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_nothing_is_swept_or_pruned_and_a_line_says_so(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS without its lock daemon: that a lock cannot be taken does not mean that nobody holds it."""

    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)

    def make(path: Path) -> None:
        path.write_bytes(b"half")
        with lock_for_run(tmp_path, "embed@b") as warnings:  # another stage begins on the same store
            assert [re.sub(r"of \S+ has", "of S has", line) for line in warnings] == [
                "the file system of S has no locks: a second run of embed@b is not noticed, and nothing that killed "
                "runs left is removed; put the store where there are locks (--store)"
            ]

    with lock_for_run(tmp_path, "align@a"):
        Store(tmp_path, owner="align@a").make("c" * 32, make)
    assert Store(tmp_path).shard("c" * 32).read_bytes() == b"half"
    for dry_run in (True, False):
        with pytest.raises(DataError, match=r"has no locks, so nobody can tell .*: nothing is removed; put the store"):
            prune.run(store=tmp_path, dry_run=dry_run)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "unreadable"])
@pytest.mark.parametrize("name", [".store", "embed@street"])
def test_what_lies_in_the_place_of_a_lock_is_no_reason_to_hang_or_to_write_to_it(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, precious = tmp_path / "locks", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("kept")
    make = {"pipe": os.mkfifo, "folder": Path.mkdir, "link": lambda path: path.symlink_to(precious)}
    make.get(kind, Path.touch)(folder / name)
    if kind == "unreadable":  # another user's
        original, denied = os.open, PermissionError(13, "Permission denied")

        def open_(path: Path, *more: int) -> int:
            if path == folder / name:
                raise denied
            return original(path, *more)

        monkeypatch.setattr(locks.os, "open", open_)
    reason = {"pipe": "no plain file", "folder": "Is a directory", "link": "a link", "unreadable": "Permission denied"}
    line = rf"^{folder / name} cannot be locked \({reason[kind]}\); remove it, or name a store of your own by --store$"
    with pytest.raises(DataError, match=line), lock_for_run(tmp_path, "embed@street"):
        pass
    assert precious.read_text() == "kept"
