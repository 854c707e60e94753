"""Run commands, one or a group, so that their whole process trees always end, and hand on the lines that they write.

`run_command` is called in a thread of the flow's process, several at once. The tree ends, TERM first and KILL after a
grace period, when the command has ended and left processes behind, at its time limit, when it is to stop, and when the
flow or the program beside the command (`supervisor.py`) is killed. Only where a flow and both processes of that program
die at the same moment are processes left, and `end_orphans` ends them. On other systems than Linux a tree is a process
group.
"""

import hashlib
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pipelines import supervisor
from pipelines.dvc_output import Line, LineSplitter

TAIL_LINES = 30
POLL_MILLISECONDS = 100  # between looks at `stop`
PIECE_BYTES = 1 << 16
SECONDS_AFTER_REPORT = 2.0  # a forked child may hold the pipe open for longer
SECONDS_TO_END = 10.0  # of a program, between TERM and KILL: a flow run has to tell the server that it was ended
LAST_PIECES = 64  # what is read after the end: more than a pipe holds, yet not without end


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. `code` is 128 + n where signal n killed it; `tail` holds its last lines."""

    code: int
    reason: Literal["exit", "timeout", "stopped"]
    tail: list[str]
    seconds: float

    def __str__(self) -> str:
        """Describe the end: exit code 3, killed by signal 9 (SIGKILL), stopped after 2 s, timed out after 20 s."""
        if self.reason != "exit":
            return f"{'timed out' if self.reason == 'timeout' else 'stopped'} after {self.seconds:.3g} s"
        try:
            return f"killed by signal {self.code - 128} ({signal.Signals(self.code - 128).name})"
        except ValueError:
            return f"exit code {self.code}"


def workspace_id(workspace: Path) -> str:
    """Return what the cookies of a workspace begin with; it differs by namespace, as process numbers do."""
    namespace = os.readlink("/proc/self/ns/pid") if supervisor.LINUX else ""
    return hashlib.sha256(f"{workspace.resolve()}\n{namespace}".encode()).hexdigest()[:16]


def new_cookie(workspace: Path) -> str:
    """Return a cookie for one tree: workspace, number and start of this process, a number of the tree's own."""
    own = supervisor.find_process(os.getpid())
    return f"{workspace_id(workspace)}:{os.getpid()}:{own[0][1] if own else 0}:{uuid.uuid4().hex}"


def run_command(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None],
    timeout: float | None = None,
    grace: float = 5.0,
    cores: Collection[int] | None = None,
    stop: threading.Event | None = None,
    cookie: str | None = None,
) -> CommandResult:
    """Run `command` in `cwd` and return when no process of its tree is left, or raise what `on_line` raised.

    Args:
        command: program and arguments.
        cwd: where it runs; the workspace, where no cookie is given.
        env: all of its environment; this process's own where it is None.
        on_line: gets each line, and a progress bar's state twice a second at most.
        timeout: seconds from the start of the command until its tree is ended.
        grace: seconds between TERM and KILL.
        cores: the cores that the command may use.
        stop: set it to end the tree.
        cookie: what `new_cookie` makes.

    Raises:
        OSError: there is no folder `cwd`, or no process can be started.
    """
    if stop and stop.is_set():
        return CommandResult(128 + signal.SIGTERM, "stopped", [], 0.0)
    began = time.monotonic()
    cookie = cookie or new_cookie(cwd)
    report_read, report_write = os.pipe()
    settings = [grace, math.inf if timeout is None else timeout, ",".join(map(str, sorted(cores or ()))) or "-"]
    program = [sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve())]
    try:
        process = subprocess.Popen(
            [*program, *map(str, settings), str(os.getpid()), str(report_write), *command],
            cwd=cwd,
            env={**(os.environ if env is None else env), supervisor.COOKIE: cookie},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=(report_write,),
            start_new_session=True,
        )
    except BaseException:
        os.close(report_read)
        raise
    finally:
        os.close(report_write)
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def hand_on(lines: Iterable[Line]) -> None:
        for line in lines:
            if line.complete:
                tail.append(line.text)
            if line.new:
                on_line(line.text)

    report = b""
    with process, os.fdopen(report_read, "rb", buffering=0) as report_file:
        assert process.stdin is not None
        try:
            report = _follow(process, report_file, hand_on, stop)
        finally:
            _ask_to_end(process.stdin)
            process.wait()
            if not report:
                supervisor.end_processes(lambda: supervisor.find_by_cookie(lambda one: one == cookie), grace)
    reason, code, ended, stuck = report.split(b"\n")[0].decode().split() if report else ("lost", "137", "0", "0")
    if reason == "lost":
        hand_on([Line(f"the supervisor of this command was killed (code {code}), so its processes were ended")])
    elif reason == "exit" and ended != "0":
        hand_on([Line(f"{ended} processes that the command left behind were ended")])
    if stuck != "0":
        hand_on([Line(f"{stuck} processes of this command cannot be ended")])
    return CommandResult(
        int(code), reason if reason in ("timeout", "stopped") else "exit", list(tail), time.monotonic() - began
    )


def _ask_to_end(pipe: IO[bytes]) -> None:
    """Ask by a byte, since a forked child may hold the pipe open."""
    try:
        pipe.write(b"s")
    except OSError:  # nobody listens any more
        pass


def _follow(
    process: subprocess.Popen[bytes],
    report_file: IO[bytes],
    hand_on: Callable[[Iterable[Line]], None],
    stop: threading.Event | None,
) -> bytes:
    """Hand on what the command writes until its tree has ended; return the report, empty where the supervisor died."""
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    splitter, report, asked, deadline = LineSplitter(), b"", False, math.inf
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(report_file, select.POLLIN)
    while time.monotonic() <= deadline:
        if stop and stop.is_set() and not asked:
            asked = True
            _ask_to_end(process.stdin)
        ready = {descriptor for descriptor, _ in poll.poll(POLL_MILLISECONDS)}
        if output in ready:
            piece = _read(output)
            hand_on(splitter.feed(piece or b"", time.monotonic()))
            if piece == b"":
                poll.unregister(output)
        else:
            hand_on(splitter.pause(time.monotonic()))
        if report_file.fileno() in ready:
            piece = report_file.read(1024) or b""
            report += piece
            if not piece:
                break
            deadline = min(deadline, time.monotonic() + SECONDS_AFTER_REPORT)
    for _ in range(LAST_PIECES):
        if not (piece := _read(output)):
            break
        hand_on(splitter.feed(piece, time.monotonic()))
    hand_on(splitter.close())
    return report


def _read(output: int) -> bytes | None:
    """Return what is there; empty at the end, None where nothing is there yet."""
    try:
        return os.read(output, PIECE_BYTES)
    except BlockingIOError:
        return None


class ProgramGroup:
    """Programs in supervised process trees; the last one started is the first one ended.

    `over` is set when all are to end. `failed`: name and result of the first program that ended by itself.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.over = threading.Event()
        self.failed: tuple[str, CommandResult] | None = None
        self._folder, self._environment = folder, environment
        self._running: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def start(self, name: str, command: Sequence[str], on_line: Callable[[str], None], **more: str) -> None:
        """Start a program that is to run until the end; `on_line` gets its lines, its environment has `more`."""
        stop = threading.Event()

        def follow() -> None:
            result = self._run(command, on_line, stop, more)
            if not stop.is_set():
                self.failed = self.failed or (name, result)
                self.over.set()

        thread = threading.Thread(target=follow, name=name, daemon=True)
        self._running[name] = thread, stop
        thread.start()

    def run(self, command: Sequence[str]) -> CommandResult:
        """Run a program to its end, or until all is over."""
        return self._run(command, lambda _: None, self.over, {})

    def end_one(self, name: str) -> None:
        """End a program, and return when no process of it is left."""
        thread, stop = self._running.pop(name)
        stop.set()
        thread.join()

    def end(self) -> None:
        """End every program."""
        self.over.set()
        for name in reversed(list(self._running)):
            self.end_one(name)

    def _run(
        self, command: Sequence[str], on_line: Callable[[str], None], stop: threading.Event, more: Mapping[str, str]
    ) -> CommandResult:
        environment = {**self._environment, **more}
        return run_command(command, cwd=self._folder, env=environment, on_line=on_line, grace=SECONDS_TO_END, stop=stop)


def end_orphans(workspace: Path, grace: float = 5.0) -> int:
    """End what dead flows of this workspace have left on this machine; return how many processes that were."""
    own = workspace_id(workspace)

    def is_orphan(cookie: str) -> bool:
        workspace_part, number, started, *_ = [*cookie.split(":"), "", ""]
        if workspace_part != own or not number.isdecimal():
            return False
        flow = supervisor.find_process(int(number))
        return flow is None or str(flow[0][1]) != started

    return sum(supervisor.end_processes(lambda: supervisor.find_by_cookie(is_orphan), grace))
