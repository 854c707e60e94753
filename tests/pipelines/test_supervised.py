"""Process trees that always end: real trees with daemons, killed from every side. What lives is told by psutil."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipelines import supervisor
from pipelines.supervised import Ended, end_leftovers, new_cookie, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trees are told by Linux's /proc")
SECONDS = 10.0  # after which nothing may be left
TREE = """
import os, signal, subprocess, sys, time
mark, sleep = sys.argv[1], "import time; time.sleep(600)"
subprocess.Popen(["sh", "-c", f": {mark}; sleep 600; true"])
subprocess.Popen([sys.executable, "-S", "-c", sleep, mark], start_new_session=True)
subprocess.Popen(["sh", "-c", f": {mark}; trap '' TERM; echo ready; while :; do sleep 600; done"], process_group=0)
if "bare" in sys.argv:
    subprocess.Popen(["env", "-i", sys.executable, "-S", "-c", sleep, mark], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"ready\\n")
        time.sleep(600)
    os._exit(0)
os.wait()
os.write(1, b"ready\\n")
if "ends" not in sys.argv:
    time.sleep(600)
sys.exit(5)
"""
FLOW = """
import os, sys, threading, time
from pathlib import Path
from pipelines.supervised import new_cookie, run
here = Path(sys.argv[1])
cookie = new_cookie(here)
print(cookie, flush=True)
command = [sys.executable, "-c", sys.argv[2], cookie, "bare"]
work = lambda: run(command, cwd=here, on_line=lambda line: print(line, flush=True), grace=0.3, cookie=cookie)
threading.Thread(target=work).start()
if "forks" in sys.argv:
    time.sleep(0.3)
    if os.fork() == 0:
        time.sleep(600)  # with a copy of every pipe's end
"""
READY = 3  # lines that a tree writes once it stands


def until(true: Callable[[], object], seconds: float = SECONDS) -> bool:
    """Whether `true` holds before the time is over."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def living(mark: str) -> list[psutil.Process]:
    """The processes that name `mark` in their command or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            named = mark in " ".join(process.cmdline()) or mark in process.environ().values()
            if named and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class Running:
    """A command in a thread of this process."""

    cookie: str
    lines: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    result: list[Ended] = field(default_factory=list)

    def start(self, *words: str, here: Path, **settings: float) -> "Running":
        command = [sys.executable, "-c", TREE, self.cookie, *words]

        def work() -> None:
            how = {"grace": 0.3, **settings}
            self.result.append(
                run(command, cwd=here, on_line=self.lines.append, stop=self.stop, cookie=self.cookie, **how)
            )

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        return self

    def stands(self) -> "Running":
        assert until(lambda: self.lines.count("ready") == READY, 60), self.lines
        return self

    def ended(self) -> Ended:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive(), [process.cmdline() for process in living(self.cookie)]
        assert living(self.cookie) == []
        return self.result[0]


def program(cookie: str) -> tuple[psutil.Process, psutil.Process]:
    """The guard and the supervisor of a tree, where both live."""
    both = [process for process in living(cookie) if supervisor.__file__ in process.cmdline()]
    (child,) = [process for process in both if process.ppid() in {other.pid for other in both}]
    (guard,) = [process for process in both if process.pid != child.pid]
    return guard, child


def command_of(cookie: str) -> psutil.Process:
    """The process of the command itself."""
    (found,) = [
        process
        for process in program(cookie)[1].children()
        if process.cmdline()[:4] == [sys.executable, "-c", TREE, cookie] and process.status() != psutil.STATUS_ZOMBIE
        if os.getsid(process.pid) == process.pid and process.children()
    ]
    return found


@pytest.fixture
def cookie(tmp_path: Path) -> Iterator[str]:
    """The cookie of a tree of `tmp_path`; beside it lives a process that is like it, yet of another tree."""
    found, other = new_cookie(tmp_path), new_cookie(tmp_path)
    environment = {**os.environ, supervisor.COOKIE: other}
    bystander = subprocess.Popen(["sh", "-c", f": {found[:-1]}; sleep 600; true"], env=environment)
    try:
        yield found
        assert bystander.poll() is None
        assert len(living(other)) == 2
    finally:
        for process in [*living(found), *living(other)]:
            process.kill()
        bystander.wait()


def test_exit_code_and_words(tmp_path: Path) -> None:
    def told(*command: str, **settings: float) -> tuple[int, str, str]:
        ended = run(command, cwd=tmp_path, on_line=lambda _: None, **settings)
        return ended.code, ended.reason, ended.words

    assert told("true") == (0, "exit", "exit code 0")
    assert told("sh", "-c", "exit 3") == (3, "exit", "exit code 3")
    assert told("sh", "-c", "kill -9 $$") == (137, "exit", "killed by signal 9 (SIGKILL)")
    assert told("sh", "-c", "exit 255") == (255, "exit", "exit code 255")
    code, reason, words = told("sleep", "60", timeout=0.2)
    assert (code, reason) == (143, "timeout")
    assert words.startswith("timed out after 0.")
    assert told("no such program")[0] == 127
    assert told(str(tmp_path))[0] == 126
    with pytest.raises(FileNotFoundError):
        run(["true"], cwd=tmp_path / "none", on_line=lambda _: None)


def test_output_comes_in_order_and_its_end_in_the_tail(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf end; cat"
    ended = run(["sh", "-c", code], cwd=tmp_path, on_line=lines.append)
    truth = [f"{kind} {number}" for number in range(500) for kind in ("out", "err")]
    assert lines == [*truth, "end"]
    assert ended.tail == lines[-30:]


def test_the_command_has_its_directory_environment_and_cores(tmp_path: Path) -> None:
    lines: list[str] = []
    code = (
        "import os; print(os.getcwd(), os.environ['A'], sorted(os.sched_getaffinity(0)), os.getsid(0) == os.getpid())"
    )
    core = max(os.sched_getaffinity(0))
    environment = {"A": "b", "PATH": os.environ["PATH"]}
    run([sys.executable, "-c", code], cwd=tmp_path, env=environment, on_line=lines.append, cores=[core])
    assert lines == [f"{tmp_path.resolve()} b [{core}] True"]
    descriptors = "import os; print(sorted(int(one) for one in os.listdir('/proc/self/fd'))[:-1])"
    run([sys.executable, "-c", descriptors], cwd=tmp_path, on_line=lines.append)
    assert lines[1:] == ["[0, 1, 2]"]  # no end of a pipe that tells of a death


def test_daemons_of_a_command_that_ended_end_with_it(tmp_path: Path, cookie: str) -> None:
    ended = Running(cookie).start("ends", "bare", here=tmp_path).ended()
    assert (ended.code, ended.reason) == (5, "exit")
    assert ended.tail[-1].endswith("processes that the command left behind were ended")


@pytest.mark.parametrize("reason", ["stopped", "timeout"])
def test_stop_and_timeout_end_all(tmp_path: Path, cookie: str, reason: str) -> None:
    running = Running(cookie).start("bare", here=tmp_path, timeout=1.5 if reason == "timeout" else 600)
    if reason == "stopped":
        assert len(living(running.stands().cookie)) >= 8
        running.stop.set()
    assert until(lambda: running.result, 60)
    ended = running.ended()
    assert (ended.reason, ended.code) == (reason, 128 + signal.SIGTERM)


def test_what_is_stopped_beforehand_never_starts(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    ended = run(["touch", "begun"], cwd=tmp_path, on_line=lambda _: None, stop=stop)
    assert ended.reason == "stopped"
    assert not (tmp_path / "begun").exists()


def test_an_error_of_the_listener_ends_all(tmp_path: Path, cookie: str) -> None:
    def fail(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="ready"):
        run([sys.executable, "-c", TREE, cookie], cwd=tmp_path, on_line=fail, grace=0.3, cookie=cookie)
    assert living(cookie) == []


def test_the_command_is_killed(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start("bare", here=tmp_path).stands()
    command_of(cookie).kill()
    ended = running.ended()
    assert (ended.code, ended.reason, ended.words) == (137, "exit", "killed by signal 9 (SIGKILL)")


def test_the_supervisor_is_killed(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start("bare", here=tmp_path).stands()
    program(cookie)[1].kill()
    ended = running.ended()
    assert (ended.code, ended.reason) == (137, "exit")
    assert "supervisor of this command was killed" in ended.tail[-1]


def test_guards_are_killed_again_and_again(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start(here=tmp_path).stands()
    guard, child = program(cookie)
    for _ in range(3):
        guard.kill()
        assert until(lambda dead=guard.pid: any(dead != one.pid for one in guards(child)))
        (guard,) = guards(child)
    assert running.thread.is_alive()
    running.stop.set()
    assert running.ended().reason == "stopped"


def guards(child: psutil.Process) -> list[psutil.Process]:
    """The guards that a supervisor has started itself."""
    return [
        process
        for process in child.children()
        if process.status() != psutil.STATUS_ZOMBIE and supervisor.__file__ in process.cmdline()
    ]


def test_the_guard_is_killed_and_then_the_supervisor(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start(here=tmp_path).stands()
    guard, child = program(cookie)
    guard.kill()
    assert until(lambda: guards(child))
    child.kill()
    ended = running.ended()
    assert (ended.code, ended.reason) == (137, "exit")


def test_guard_and_supervisor_are_killed_at_once(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start(here=tmp_path).stands()
    both = program(cookie)
    for process in both:
        process.suspend()  # neither sees the other die
    for process in both:
        process.kill()
    ended = running.ended()
    assert (ended.code, ended.reason) == (137, "exit")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("which", [0, 1])
def test_the_program_is_asked_to_end(tmp_path: Path, cookie: str, which: int, number: int) -> None:
    running = Running(cookie).start("bare", here=tmp_path).stands()
    program(cookie)[which].send_signal(number)
    assert running.ended().reason == "stopped"


@pytest.fixture
def flow(tmp_path: Path, root: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that runs a tree in a thread; it and the tree's cookie."""
    command = [sys.executable, "-c", FLOW, str(tmp_path), TREE, *getattr(request, "param", [])]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        cookie = process.stdout.readline().strip()
        try:
            assert [process.stdout.readline() for _ in range(READY)] == ["ready\n"] * READY
            yield process, cookie
        finally:
            process.kill()
            for one in living(cookie):
                one.kill()


@pytest.mark.parametrize("flow", [["plain"], ["forks"]], indirect=True)
def test_the_flow_is_killed(flow: tuple[subprocess.Popen[str], str], cookie: str) -> None:
    process, of_flow = flow
    children = psutil.Process(process.pid).children()
    forked = [child for child in children if supervisor.__file__ not in child.cmdline()]
    process.kill()  # and not waited for: a dead process that nobody has buried yet
    try:
        assert until(lambda: not living(of_flow))
        assert all(child.is_running() for child in forked)
    finally:
        for child in forked:
            child.kill()


def test_all_three_are_killed_and_the_next_start_ends_what_is_left(
    flow: tuple[subprocess.Popen[str], str], cookie: str, tmp_path: Path
) -> None:
    process, of_flow = flow
    assert end_leftovers(tmp_path) == 0  # the flow lives
    three = [*program(of_flow), psutil.Process(process.pid)]
    for one in three:
        one.suspend()
    for one in three:
        one.kill()
    for one in living(of_flow):
        if of_flow not in one.environ().values():
            one.kill()  # this one has thrown its cookie away
    assert len(living(of_flow)) >= 6
    assert end_leftovers(tmp_path / "another") == 0
    assert end_leftovers(tmp_path, grace=0.3) >= 6
    assert living(of_flow) == []


def test_a_number_that_changed_hands_is_left_alone(tmp_path: Path, cookie: str) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        now = supervisor.look_up(process.pid)
        assert now is not None
        supervisor.send(supervisor.Process(process.pid, now[0].started - 1), signal.SIGKILL)
        assert process.poll() is None
        supervisor.send(now[0], signal.SIGKILL)
        assert process.wait(SECONDS) == -signal.SIGKILL
    workspace, number, started, name = cookie.split(":")
    earlier = {supervisor.COOKIE: ":".join([workspace, number, str(int(started) - 1), name])}
    with subprocess.Popen(["sleep", "600"], env={**os.environ, **earlier}) as process:
        assert end_leftovers(tmp_path) == 1  # this process has the number of the flow, yet is another
        assert process.wait(SECONDS) == -signal.SIGTERM


def test_runs_at_the_same_time_leave_each_other_alone(tmp_path: Path, cookie: str) -> None:
    cookies = [cookie, *(new_cookie(tmp_path) for _ in range(2))]
    runs = [Running(one).start(here=tmp_path) for one in cookies]
    for one in runs:
        one.stands()
    program(cookies[0])[1].kill()
    assert runs[0].ended().code == 137
    command_of(cookies[1]).kill()
    assert runs[1].ended().code == 137
    assert runs[2].thread.is_alive()
    assert len(living(cookies[2])) >= 8
    runs[2].stop.set()
    assert runs[2].ended().reason == "stopped"


def test_without_proc_the_group_of_the_command_ends(
    tmp_path: Path, cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of other systems, played on Linux."""
    text = Path(supervisor.__file__).read_text(encoding="utf-8")
    elsewhere = tmp_path / "supervisor.py"
    elsewhere.write_text(text.replace('LINUX = sys.platform == "linux"', "LINUX = False"), encoding="utf-8")
    monkeypatch.setattr(supervisor, "__file__", str(elsewhere))
    group = ["sh", "-c", f": {cookie}; (trap '' TERM; sleep 600) & sleep 600 & echo begun; exit 4"]
    ended = run(group, cwd=tmp_path, on_line=lambda _: None, grace=0.3, cookie=cookie)
    assert (ended.code, ended.reason, living(cookie)) == (4, "exit", [])
    ended = run(["sleep", "600"], cwd=tmp_path, on_line=lambda _: None, timeout=0.3, cookie=cookie)
    assert (ended.code, ended.reason, living(cookie)) == (143, "timeout", [])
