"""A command whose process tree always ends. In: a command and what may end it. Out: its lines, and how it ended.

`run` is called in a thread of the flow's process, several at once. The tree ends, TERM first and KILL after a grace,
when the command has ended and left something behind, when its time is over, when it is to stop, when the flow or the
program beside the command (`supervisor.py`) is killed. Only where a flow and both processes of that program die at the
same moment something is left, and `end_leftovers` ends it. On other systems than Linux a tree is a process group.
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
from pipelines.lines import Line, Lines

Reason = Literal["exit", "timeout", "stopped"]
REASONS: dict[str, Reason] = {"timeout": "timeout", "stopped": "stopped"}
TAIL_LINES = 30
MILLISECONDS = 100  # between looks at `stop`
PIECE_BYTES = 1 << 16
SECONDS_TO_LEAVE = 2.0  # of those who have reported; a forked child may hold the pipe open for longer
LAST_PIECES = 64  # what is read after the end: more than a pipe holds, yet not without end


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is 128 + n where signal n killed it; `tail` holds its last lines."""

    code: int
    reason: Reason
    tail: list[str]
    seconds: float

    @property
    def words(self) -> str:
        """The end in words: exit code 3, killed by signal 9 (SIGKILL), stopped, timed out after 20 s."""
        if self.reason == "timeout":
            return f"timed out after {self.seconds:.3g} s"
        if self.reason == "stopped":
            return f"stopped after {self.seconds:.3g} s"
        try:
            return f"killed by signal {self.code - 128} ({signal.Signals(self.code - 128).name})"
        except ValueError:
            return f"exit code {self.code}"


def mark(workspace: Path) -> str:
    """What the cookies of a workspace begin with. Process numbers mean nothing in another namespace, so it is in it."""
    namespace = os.readlink("/proc/self/ns/pid") if supervisor.LINUX else ""
    return hashlib.sha256(f"{workspace.resolve()}\n{namespace}".encode()).hexdigest()[:16]


def new_cookie(workspace: Path) -> str:
    """A cookie for one tree of this process: workspace, number and start of the flow's process, a number of its own."""
    own = supervisor.look_up(os.getpid())
    return f"{mark(workspace)}:{os.getpid()}:{own[0][1] if own else 0}:{uuid.uuid4().hex}"


def run(
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
) -> Ended:
    """Runs `command` in `cwd` and returns when no process of its tree is left, or raises what `on_line` raised.

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
        return Ended(128 + signal.SIGTERM, "stopped", [], 0.0)
    began = time.monotonic()
    cookie = cookie or new_cookie(cwd)
    report, report_end = os.pipe()
    settings = [grace, math.inf if timeout is None else timeout, ",".join(map(str, sorted(cores or ()))) or "-"]
    program = [sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve())]
    try:
        process = subprocess.Popen(
            [*program, *map(str, settings), str(os.getpid()), str(report_end), *command],
            cwd=cwd,
            env={**(os.environ if env is None else env), supervisor.COOKIE: cookie},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=(report_end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(report_end)
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def tell(lines: Iterable[Line]) -> None:
        for line in lines:
            if line.whole:
                tail.append(line.text)
            if line.new:
                on_line(line.text)

    told = b""
    with process, os.fdopen(report, "rb", buffering=0) as report_file:
        assert process.stdin is not None
        try:
            told = _follow(process, report_file, tell, stop)
        finally:
            _ask_to_end(process.stdin)
            process.wait()
            if not told:
                supervisor.end(lambda: supervisor.carriers(lambda one: one == cookie), grace)
    reason, code, ended, stuck = told.split(b"\n")[0].decode().split() if told else ("lost", "137", "0", "0")
    note = {
        "lost": f"the supervisor of this command was killed (code {code}), so its processes were ended",
        "exit": f"{ended} processes that the command left behind were ended" if ended != "0" else "",
    }.get(reason, "")
    stubborn = f"{stuck} processes of this command cannot be ended" if stuck != "0" else ""
    tell(Line(text) for text in (note, stubborn) if text)
    return Ended(int(code), REASONS.get(reason, "exit"), list(tail), time.monotonic() - began)


def _ask_to_end(pipe: IO[bytes]) -> None:
    """Asks by a byte, since a forked child may hold the pipe open."""
    try:
        pipe.write(b"s")
    except OSError:  # nobody listens any more
        pass


def _follow(
    process: subprocess.Popen[bytes],
    report: IO[bytes],
    tell: Callable[[Iterable[Line]], None],
    stop: threading.Event | None,
) -> bytes:
    """Hands on what the command writes until its tree has ended; the report, empty where nobody was left to tell."""
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    lines, told, asked, over = Lines(), b"", False, 0.0
    watch = select.poll()
    watch.register(output, select.POLLIN)
    watch.register(report, select.POLLIN)
    while True:
        if stop and stop.is_set() and not asked:
            asked = True
            _ask_to_end(process.stdin)
        ready = {descriptor for descriptor, _ in watch.poll(MILLISECONDS)}
        if output in ready:
            piece = _read(output)
            tell(lines.feed(piece or b"", time.monotonic()))
            if piece == b"":
                watch.unregister(output)
        else:
            tell(lines.quiet(time.monotonic()))
        if report.fileno() in ready:
            piece = report.read(1024) or b""
            told += piece
            if not piece:
                break
        if told and time.monotonic() > (over := over or time.monotonic() + SECONDS_TO_LEAVE):
            break
    for _ in range(LAST_PIECES):
        if not (piece := _read(output)):
            break
        tell(lines.feed(piece, time.monotonic()))
    tell(lines.close())
    return told


def _read(output: int) -> bytes | None:
    """What is there; empty at the end, None where nothing is there yet."""
    try:
        return os.read(output, PIECE_BYTES)
    except BlockingIOError:
        return None


def end_leftovers(workspace: Path, grace: float = 5.0) -> int:
    """Ends what dead flows of this workspace have left on this machine; how many processes that were."""
    beginning = mark(workspace)

    def is_left(cookie: str) -> bool:
        whose, _, rest = cookie.partition(":")
        number, _, rest = rest.partition(":")
        if whose != beginning or not number.isdecimal():
            return False
        flow = supervisor.look_up(int(number))
        return flow is None or str(flow[0][1]) != rest.partition(":")[0]

    return sum(supervisor.end(lambda: supervisor.carriers(is_left), grace))
