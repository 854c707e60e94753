"""GPUs of a host: which there are, and locks that two processes never hold together and that end with their holder."""

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import locks
from pipelines.locks import hold_gpu, visible_gpus

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.locks import hold_gpu
def waiting():
    raise SystemExit("waits")
with hold_gpu(sys.argv[2], waiting, Path(sys.argv[1])):
    print("holds", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GPU_SECONDS_BETWEEN_TRIES", 0.01)


def start(place: Path, gpu: str, seconds: float, root: Path) -> subprocess.Popen[str]:
    """A process that holds a GPU."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HOLDER, str(place), gpu, str(seconds)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.parent
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.usefixtures("quick")
def test_one_gpu_is_held_by_one_process_until_that_is_gone(tmp_path: Path, root: Path) -> None:
    place = tmp_path / "locks"
    first = start(place, "0", 600, root)
    try:
        assert said(first) == "holds"
        second = start(place, "0", 0, root)
        assert second.communicate()[1].strip() == "waits"
        other = start(place, "1", 0, root)
        assert other.communicate()[0].strip() == "holds"  # another one is free
        waited: list[float] = []

        def waiting() -> None:
            waited.append(time.monotonic())
            if len(waited) == 3:
                first.kill()  # -9: it lets go of nothing itself

        with hold_gpu("0", waiting, place):
            assert len(waited) >= 3
    finally:
        first.kill()
        first.communicate()


@pytest.mark.usefixtures("quick")
def test_whoever_waits_may_give_up_and_leaves_nothing(tmp_path: Path) -> None:
    def give_up() -> None:
        raise TimeoutError("the run ended")

    before = len(os.listdir("/proc/self/fd"))
    with hold_gpu("MIG-a/b", give_up, tmp_path):
        with pytest.raises(TimeoutError, match="the run ended"), hold_gpu("MIG-a/b", give_up, tmp_path):
            pass
        assert len(os.listdir("/proc/self/fd")) == before + 1
    with hold_gpu("MIG-a/b", give_up, tmp_path):
        pass
    assert os.listdir(tmp_path) == ["MIG-a_b"]


def test_other_users_may_hold_a_gpu_too(tmp_path: Path) -> None:
    place = tmp_path / "locks"
    before = os.umask(0o077)
    try:
        with hold_gpu("0", lambda: None, place) as warning:
            assert (warning, stat.S_IMODE((place / "0").stat().st_mode)) == ("", 0o644)
            (place / "0").chmod(0o600)  # as an older version left it
            os.utime(place / "0", (0, 0))
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o1777  # all may add, none may take away another's
    with hold_gpu("0", lambda: None, place):
        assert time.time() - (place / "0").stat().st_mtime < 60  # young enough not to be swept away
        assert stat.S_IMODE((place / "0").stat().st_mode) == 0o644


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "unreadable", "no folder"])
def test_what_a_neighbour_put_in_the_place_of_a_lock_neither_stops_nor_crashes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is held among one's own runs then, a line says so, and what is there is not touched."""
    place, precious = tmp_path / "locks", tmp_path / "precious"
    precious.write_text("kept")
    if kind == "no folder":
        place.touch()
    else:
        place.mkdir()
        make = {"pipe": os.mkfifo, "folder": Path.mkdir, "link": lambda path: path.symlink_to(precious)}
        make.get(kind, Path.touch)(place / "0")
    if kind == "unreadable":  # as to whom it does not belong, made with a umask of 077
        original = os.open
        denied = PermissionError(13, "Permission denied")
        monkeypatch.setattr(
            locks.os, "open", lambda path, *more: raise_(denied) if path == place / "0" else original(path, *more)
        )
    before = len(os.listdir("/proc/self/fd"))
    with hold_gpu("0", lambda: None, place) as warning:
        assert re.search(r"locks/0 cannot be locked \(.+\): GPU 0 is held among your own runs alone, ", warning)
        assert "\n" not in warning
        with pytest.raises(TimeoutError), hold_gpu("0", lambda: raise_(TimeoutError()), place):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / f"locks-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert precious.read_text() == "kept"


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("0,1", ("0", "1")),
        (" GPU-4f , MIG-a/1 ", ("GPU-4f", "MIG-a/1")),
        ("", ()),
        ("-1", ()),
        ("1,-1,0", ("1",)),  # CUDA takes -1 for the end
        ("0,0,2", ("0", "2")),
    ],
)
def test_cuda_visible_devices_says_which_there_are(
    monkeypatch: pytest.MonkeyPatch, named: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("printf '0\\n1\\n'", ("0", "1")),
        ("echo No devices were found", ()),
        ("echo 0; exit 9", ()),
        ("sleep 5", ()),
    ],
)
def test_the_driver_is_asked_where_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: tuple[str, ...]
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script.replace('sleep', 'exec sleep')}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if "sleep" in script:  # a driver that hangs
        monkeypatch.setattr(locks, "DRIVER_SECONDS", 0.3)
    assert visible_gpus() == found


def test_without_a_driver_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ()
