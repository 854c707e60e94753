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
from pipelines.process_tree import CommandResult, end_orphans, new_cookie, run_command
from tests.processes import words_of

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
from pipelines.process_tree import new_cookie, run_command
here = Path(sys.argv[1])
cookie = new_cookie(here)
print(cookie, flush=True)
command = [sys.executable, "-c", sys.argv[2], cookie, "bare"]
begun = threading.Event()
def tell(line):
    os.write(1, (line + "\\n").encode())
    begun.set()
threading.Thread(target=lambda: run_command(command, cwd=here, on_line=tell, grace=0.3, cookie=cookie)).start()
begun.wait()
if "forks" in sys.argv and os.fork() == 0:
    os.write(1, b"forked\\n")
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
    result: list[CommandResult] = field(default_factory=list)

    def start(self, *words: str, here: Path, **settings: float) -> "Running":
        command = [sys.executable, "-c", TREE, self.cookie, *words]

        def work() -> None:
            how = {"grace": 0.3, **settings}
            self.result.append(
                run_command(command, cwd=here, on_line=self.lines.append, stop=self.stop, cookie=self.cookie, **how)
            )

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        return self

    def stands(self) -> "Running":
        assert until(lambda: self.lines.count("ready") == READY, 60), self.lines
        return self

    def ended(self) -> CommandResult:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive(), [*map(words_of, living(self.cookie))]
        assert living(self.cookie) == []
        return self.result[0]


def programs(cookie: str) -> list[psutil.Process]:
    """The guards and supervisors of a tree that live."""
    return [process for process in living(cookie) if supervisor.__file__ in words_of(process)]


def program(cookie: str) -> tuple[psutil.Process, psutil.Process]:
    """The guard and the supervisor of a tree, where both live and none was killed."""
    first, second = programs(cookie)
    return (first, second) if second.ppid() == first.pid else (second, first)


def second_guards(cookie: str, child: psutil.Process) -> list[psutil.Process]:
    """The guards that a supervisor has started itself."""
    return [process for process in programs(cookie) if process.pid != child.pid and process.ppid() == child.pid]


def command_of(cookie: str) -> psutil.Process:
    """The process of the command itself."""
    (found,) = [
        process
        for process in program(cookie)[1].children()
        if words_of(process)[:4] == [sys.executable, "-c", TREE, cookie]
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


def test_exit_code_and_description(tmp_path: Path) -> None:
    def told(*command: str, **settings: float) -> tuple[int, str, str]:
        ended = run_command(command, cwd=tmp_path, on_line=lambda _: None, **settings)
        return ended.code, ended.reason, str(ended)

    assert told("true") == (0, "exit", "exit code 0")
    assert told("sh", "-c", "exit 3") == (3, "exit", "exit code 3")
    assert told("sh", "-c", "kill -9 $$") == (137, "exit", "killed by signal 9 (SIGKILL)")
    assert told("sh", "-c", "exit 255") == (255, "exit", "exit code 255")
    code, reason, words = told("sleep", "60", timeout=0.2)
    assert (code, reason) == (143, "timeout")
    assert words.startswith("timed out after 0.")
    assert told("no such program")[0] == 127
    assert told(str(tmp_path))[0] == 126
    ended = run_command(["true"], cwd=tmp_path, on_line=lambda _: None, cores=[1000])
    assert (ended.code, ended.tail) == (126, ["the cores 1000 cannot be used: Invalid argument"])
    with pytest.raises(FileNotFoundError):
        run_command(["true"], cwd=tmp_path / "none", on_line=lambda _: None)


def test_output_comes_in_order_and_its_end_in_the_tail(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf end; cat"
    ended = run_command(["sh", "-c", code], cwd=tmp_path, on_line=lines.append)
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
    run_command([sys.executable, "-c", code], cwd=tmp_path, env=environment, on_line=lines.append, cores=[core])
    assert lines == [f"{tmp_path.resolve()} b [{core}] True"]
    descriptors = "import os; print(sorted(int(one) for one in os.listdir('/proc/self/fd'))[:-1])"
    run_command([sys.executable, "-c", descriptors], cwd=tmp_path, on_line=lines.append)
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


NOTICED = """
import os, signal, subprocess, sys, time
mark, end = sys.argv[1:]
inner = "trap 'echo TERM' TERM; echo ready; while :; do sleep 1; done"
subprocess.Popen(["sh", "-c", inner, mark])
def hear(*_):
    os.write(1, b"HUP\\n")
    if end == "ends":
        sys.exit(7)
signal.signal(signal.SIGHUP, hear)
os.write(1, b"ready\\n")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("end", ["ends", "stays"])
def test_with_notice_the_command_hears_of_the_end_before_the_rest(tmp_path: Path, cookie: str, end: str) -> None:
    """The one that stays would have ten minutes, but the program is asked again."""
    lines, stop, result = list[str](), threading.Event(), list[CommandResult]()

    def work() -> None:
        command = [sys.executable, "-c", NOTICED, cookie, end]
        result.append(
            run_command(command, cwd=tmp_path, on_line=lines.append, notice=600, grace=0.3, stop=stop, cookie=cookie)
        )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert until(lambda: lines.count("ready") == 2, 60)
    stop.set()
    assert until(lambda: "HUP" in lines, 60)
    if end == "stays":
        assert thread.is_alive()
        assert "TERM" not in lines
        program(cookie)[0].send_signal(signal.SIGTERM)
    thread.join(60)
    assert (result[0].reason, result[0].code) == ("stopped", 7 if end == "ends" else 143)
    assert lines[2] == "HUP"
    assert living(cookie) == []


def test_a_command_may_write_where_its_flow_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    command = ["sh", "-c", "echo out; echo err >&2; sleep 600 & exit 3"]
    result = run_command(command, cwd=tmp_path, on_line=lines.append, own_output=True)
    assert (result.code, result.reason) == (3, "exit")
    assert capfd.readouterr() == ("out\n", "err\n")
    assert lines == ["1 processes that the command left behind were ended"]


def test_what_is_stopped_beforehand_never_starts(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    ended = run_command(["touch", "begun"], cwd=tmp_path, on_line=lambda _: None, stop=stop)
    assert ended.reason == "stopped"
    assert not (tmp_path / "begun").exists()


def test_an_error_of_the_listener_ends_all(tmp_path: Path, cookie: str) -> None:
    def fail(line: str) -> None:
        raise ValueError(line)

    with pytest.raises(ValueError, match="ready"):
        run_command([sys.executable, "-c", TREE, cookie], cwd=tmp_path, on_line=fail, grace=0.3, cookie=cookie)
    assert living(cookie) == []


def test_the_command_is_killed(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start("bare", here=tmp_path).stands()
    command_of(cookie).kill()
    ended = running.ended()
    assert (ended.code, ended.reason, str(ended)) == (137, "exit", "killed by signal 9 (SIGKILL)")


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
        assert until(lambda dead=guard.pid: [one for one in second_guards(cookie, child) if one.pid != dead])
        (guard,) = second_guards(cookie, child)
    assert running.thread.is_alive()
    running.stop.set()
    assert running.ended().reason == "stopped"


def test_the_guard_is_killed_and_then_the_supervisor(tmp_path: Path, cookie: str) -> None:
    running = Running(cookie).start(here=tmp_path).stands()
    guard, child = program(cookie)
    guard.kill()
    assert until(lambda: second_guards(cookie, child))
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
    words = getattr(request, "param", [])
    command = [sys.executable, "-c", FLOW, str(tmp_path), TREE, *words]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        cookie = process.stdout.readline().strip()
        try:
            truth = ["forked\n"] * len(words) + ["ready\n"] * READY
            assert sorted(process.stdout.readline() for _ in truth) == truth
            yield process, cookie
        finally:
            process.kill()
            for one in living(cookie):
                one.kill()


@pytest.mark.parametrize("flow", [[], ["forks"]], ids=["plain", "forks"], indirect=True)
def test_the_flow_is_killed(
    flow: tuple[subprocess.Popen[str], str], cookie: str, request: pytest.FixtureRequest
) -> None:
    process, of_flow = flow
    children = psutil.Process(process.pid).children()
    forked = [child for child in children if supervisor.__file__ not in words_of(child)]
    assert len(forked) == (request.node.callspec.id == "forks")
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
    assert end_orphans(tmp_path) == 0  # the flow lives
    three = [*program(of_flow), psutil.Process(process.pid)]
    for one in three:
        one.suspend()
    for one in three:
        one.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a busy machine takes a while to end it; not reaped
    for one in living(of_flow):
        if of_flow not in one.environ().values():
            one.kill()  # this one has thrown its cookie away
    assert len(living(of_flow)) >= 6
    assert end_orphans(tmp_path / "another") == 0
    assert end_orphans(tmp_path, grace=0.3) >= 6
    assert living(of_flow) == []


def test_a_number_that_changed_hands_is_left_alone(tmp_path: Path, cookie: str) -> None:
    workspace, number, started, name = cookie.split(":")
    earlier = {supervisor.COOKIE: ":".join([workspace, number, str(int(started) - 1), name])}
    one = subprocess.Popen(["sleep", "600"])
    two = subprocess.Popen(["sleep", "600"], env={**os.environ, **earlier})
    try:
        now = supervisor.find_process(one.pid)
        assert now is not None
        supervisor.send_signal((one.pid, now[0][1] - 1), signal.SIGKILL)
        supervisor.send_signal(now[0], signal.SIGTERM)
        assert one.wait(SECONDS) == -signal.SIGTERM
        assert end_orphans(tmp_path) == 1  # this process has the number of the flow, yet is another
        assert two.wait(SECONDS) == -signal.SIGTERM
    finally:
        one.kill()
        two.kill()


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


@pytest.fixture
def alter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Has the runs of a test use a program beside the command that differs in one place."""

    def change(old: str, new: str) -> None:
        text = Path(supervisor.__file__).read_text(encoding="utf-8")
        assert text.count(old) == 1
        elsewhere = tmp_path / "supervisor.py"
        elsewhere.write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.setattr(supervisor, "__file__", str(elsewhere))

    return change


def test_without_proc_the_group_of_the_command_ends(
    tmp_path: Path, cookie: str, alter: Callable[[str, str], None]
) -> None:
    """The way of other systems, played on Linux."""
    alter('LINUX = sys.platform == "linux"', "LINUX = False")
    group = ["sh", "-c", f": {cookie}; (trap '' TERM; sleep 600) & sleep 600 & echo begun; exit 4"]
    ended = run_command(group, cwd=tmp_path, on_line=lambda _: None, grace=0.3, cookie=cookie)
    assert (ended.code, ended.reason, living(cookie)) == (4, "exit", [])
    ended = run_command(["sleep", "600"], cwd=tmp_path, on_line=lambda _: None, timeout=0.3, cookie=cookie)
    assert (ended.code, ended.reason, living(cookie)) == (143, "timeout", [])


def test_an_old_kernel_without_handles_of_processes(
    tmp_path: Path, cookie: str, alter: Callable[[str, str], None]
) -> None:
    alter("return os.pidfd_open(number)", "raise OSError(38, 'Function not implemented')")
    ended = Running(cookie).start("ends", "bare", here=tmp_path).ended()
    assert (ended.code, ended.reason) == (5, "exit")
