"""One run to a workspace, and DVC's lock of paths after kills: real processes; DVC itself reads what was mended."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.rwlock import rwlock

from pipelines import FlowError, locks, workspace
from pipelines.locks import lock_workspace, repair_rwlock
from pipelines.workspace import find_site_cache, find_workspace, make_private_folder, stage_environment

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.locks import lock_workspace
with lock_workspace(Path(sys.argv[1]), "the other") as fresh:
    print(fresh, flush=True)
    time.sleep(600)
"""
SLEEP = "import sys, time; print(flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like a workspace's."""
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


@contextlib.contextmanager
def running(*command: str, cwd: Path, root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line; it is killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_workspace_is_held_by_one_process_until_that_is_gone(folder: Path, root: Path) -> None:
    with running(sys.executable, "-c", HOLDER, str(folder), cwd=folder, root=root) as other:
        told = f"{folder} is in use by 'the other' (process {other.pid} on "
        with pytest.raises(FlowError, match=re.escape(told)), lock_workspace(folder, "mine"):
            pass
        other.kill()
        other.wait()
        with lock_workspace(folder, "mine") as fresh:
            assert fresh


def test_a_flow_within_a_flow_shares_the_workspace_and_another_thread_does_not(folder: Path) -> None:
    found: list[Any] = []

    def enter() -> None:
        try:
            with lock_workspace(folder, "inner") as fresh:
                found.append(fresh)
        except FlowError as error:
            found.append(str(error))

    with lock_workspace(folder, "outer") as fresh:
        assert fresh
        enter()
        inherited = threading.Thread(target=copy_context().run, args=(enter,))
        stranger = threading.Thread(target=enter)
        for thread in (inherited, stranger):
            thread.start()
            thread.join()
    assert found[:2] == [False, False]
    assert "in use by 'outer'" in found[2]
    enter()
    assert found[3] is True


def test_a_folder_that_takes_no_lock_is_told(tmp_path: Path) -> None:
    (tmp_path / ".dvc").write_text("a file")
    with (
        pytest.raises(FlowError, match=r"pipelines\.lock cannot be written and locked"),
        lock_workspace(tmp_path, "mine"),
    ):
        pass


def test_the_workspace_is_given_or_named_or_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PIPELINES_WORKSPACE", raising=False)
    assert find_workspace() == find_workspace(str(folder / "link")) == folder.resolve()
    monkeypatch.setenv("PIPELINES_WORKSPACE", str(folder / ".dvc"))
    with pytest.raises(FlowError, match=r"has no dvc\.yaml; name the workspace or set PIPELINES_WORKSPACE"):
        find_workspace()
    assert find_workspace(str(folder)) == folder.resolve()


def test_python_of_a_stage_is_the_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path))
    binaries = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", binaries, "", "/bin"]))
    environment = stage_environment(tmp_path, {"CUDA_VISIBLE_DEVICES": "3"})
    assert environment["PATH"].split(os.pathsep) == [binaries, "/usr/bin", "/bin"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["DVC_NO_ANALYTICS"] == "1"


def test_what_dvc_remembers_lies_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pickles run what their writer wants; what is set for the workspace counts, in DVC's own order."""
    own = tmp_path / f"dvc-{os.getuid()}"
    monkeypatch.setattr(workspace, "TEMPORARY", tmp_path)
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    for level in ("GLOBAL", "SYSTEM"):
        (tmp_path / level).mkdir()
        monkeypatch.setenv(f"DVC_{level}_CONFIG_DIR", str(tmp_path / level))
    before = os.umask(0)
    try:
        assert stage_environment(tmp_path)["DVC_SITE_CACHE_DIR"] == str(own)
    finally:
        os.umask(before)
    assert own.stat().st_mode & 0o777 == 0o700
    (tmp_path / ".dvc").mkdir()
    for name in ("SYSTEM/config", "GLOBAL/config", ".dvc/config", ".dvc/config.local"):
        place = tmp_path / "memory" / name  # DVC makes it
        (tmp_path / name).write_text(f'[core]\n    remote = x\n    site_cache_dir = "{place}"\n', encoding="utf-8")
        words = [sys.executable, "-c", "from dvc.repo import Repo; print(Repo().config['core']['site_cache_dir'])"]
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        theirs = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True).stdout.strip()
        assert find_site_cache(tmp_path) == theirs == str(place)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/named")
    assert find_site_cache(tmp_path) == "/named"


@pytest.mark.parametrize("kind", ["open", "readable", "link", "file", "another user's"])
def test_a_folder_that_another_user_may_have_filled_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dvc"
    if kind == "link":
        path.symlink_to(tmp_path)
    elif kind == "file":
        path.touch(0o600)
    else:
        path.mkdir(0o700)
        path.chmod({"open": 0o777, "readable": 0o755}.get(kind, 0o700))
    if kind == "another user's":
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(FlowError, match=r"is no private folder: .*set TMPDIR to a folder of your own$"):
        make_private_folder(path, "TMPDIR")


def lock(folder: Path) -> Path:
    return folder / ".dvc" / "tmp" / "rwlock"


def entry(process: "subprocess.Popen[str] | int", command: str) -> dict[str, Any]:
    return {"pid": process if isinstance(process, int) else process.pid, "cmd": command}


def dead_number() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def dvc_can_write(folder: Path, path: str) -> bool:
    """Whether DVC itself can lock a path for writing there."""
    try:
        with rwlock(str(folder / ".dvc" / "tmp"), localfs, "repro", [], [path], False):
            return True
    except LockError:
        return False


def test_entries_of_the_living_stay_and_those_of_the_dead_go(folder: Path, root: Path) -> None:
    with running(sys.executable, "-c", SLEEP, "dvc", "repro", "-s", "train", cwd=folder, root=root) as living:
        kept = {
            "write": {"/w/model": entry(living, "/bin/dvc dvc repro -s train")},
            "read": {"/w/data": [entry(living, "/bin/dvc dvc repro -s train")]},
        }
        lock(folder).write_text(json.dumps(kept))
        assert repair_rwlock(folder) is None
        assert json.loads(lock(folder).read_text()) == kept
        mixed = {
            "write": {**kept["write"], "/w/other": entry(living, "/bin/dvc repro -s other")},  # its number was reused
            "read": {"/w/data": [entry(dead_number(), "dvc repro -s x"), *kept["read"]["/w/data"]], "/w/b": []},
        }
        mixed["read"]["/w/b"] = [entry(dead_number(), "dvc repro -s y")]
        lock(folder).write_text(json.dumps(mixed))
        assert not dvc_can_write(folder, "/w/other")
        lock(folder).write_text(json.dumps(mixed))
        told = repair_rwlock(folder)
        assert told == "repaired .dvc/tmp/rwlock: removed 3 entries of dead processes, left by a killed run"
        assert json.loads(lock(folder).read_text()) == kept
        assert dvc_can_write(folder, "/w/other")
        assert not dvc_can_write(folder, "/w/model")
    assert repair_rwlock(folder) is not None
    assert not lock(folder).exists()
    assert dvc_can_write(folder, "/w/model")


def test_the_lock_of_a_real_dvc_stays_until_it_is_killed(tmp_path: Path, new_repository: Callable[..., Path]) -> None:
    folder = new_repository(tmp_path, {"dvc.yaml": "stages: {slow: {cmd: echo; exec sleep 600, outs: [never]}}"})
    command = [sys.executable, "-m", "dvc", "--quiet", "--wait-for-lock", "repro", "-s", "slow"]
    dvc = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert dvc.stdout is not None
        dvc.stdout.readline()
        (info,) = json.loads(lock(folder).read_text())["write"].values()
        assert info["pid"] == dvc.pid
        assert repair_rwlock(folder) is None
    finally:
        os.killpg(dvc.pid, signal.SIGKILL)
        dvc.communicate()
    assert repair_rwlock(folder) is not None


@pytest.mark.parametrize(
    "content",
    ["", '{"write": {"/w/a": {"pid": 12', "[]", '{"write": {"/w/a": 3}}', '{"read": {"/w/a": [{"pid": "1"}]}}', "\xff"],
)
def test_a_half_written_lock_goes_where_no_dvc_is_at_work(folder: Path, root: Path, content: str) -> None:
    lock(folder).write_text(content, encoding="latin-1")
    if content in ("", "[]"):  # two are enough, a process each
        with running(sys.executable, "-c", SLEEP, "dvc", cwd=folder, root=root):
            assert repair_rwlock(folder) is None  # it may be its writer
            assert lock(folder).exists()
    assert repair_rwlock(folder) == "repaired .dvc/tmp/rwlock: removed a half-written file, left by a killed run"
    assert not lock(folder).exists()
    assert repair_rwlock(folder) is None


def test_a_lock_that_dvc_is_writing_is_left_to_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RWLOCK_TRIES", 2)
    lock(folder).write_text('{"write": {')
    with lock(folder).with_name("rwlock.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert repair_rwlock(folder) is None
        assert lock(folder).exists()
    assert repair_rwlock(folder) is not None


def test_a_process_that_may_not_be_read_is_taken_for_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    lock(folder).write_text(json.dumps({"write": {"/w/a": entry(os.getpid(), "dvc repro")}}))
    assert repair_rwlock(folder) is None


def test_mending_beside_dvcs_at_work_breaks_none(folder: Path, root: Path) -> None:
    """Many takers of the lock, and a mender that looks all the time."""
    script = (
        "import sys\nfrom dvc.fs import localfs\nfrom dvc.rwlock import rwlock\nprint(flush=True)\n"
        "for n in range(20):\n"
        "    with rwlock('.dvc/tmp', localfs, ' '.join(sys.argv), [], [f'/w/{sys.argv[1]}/{n}'], False): pass\n"
    )
    with contextlib.ExitStack() as held:
        takers = [
            held.enter_context(running(sys.executable, "-c", script, name, cwd=folder, root=root)) for name in "ab"
        ]
        while any(taker.poll() is None for taker in takers):
            assert repair_rwlock(folder) is None
        assert [taker.returncode for taker in takers] == [0, 0]
