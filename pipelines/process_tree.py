"""Run commands, one or a group, so that their whole process trees always end, and hand on the lines that they write.

`run_command` is called in a thread of the flow's process, several at once. The tree ends, TERM first and KILL after a
grace period, when the command has ended and left processes behind, at its time limit, when it is to stop, and when the
flow or the program beside the command (`supervisor.py`) is killed. A flow that is started by hand is such a command
itself. Only where a flow and both processes of that program
die at the same moment are processes left, and `end_orphans` ends them. On other systems than Linux a tree is a process
group.
"""

import hashlib
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import IO, Literal, NamedTuple

from pipelines import supervisor

TAIL_LINES = 30
POLL_MILLISECONDS = 100  # between looks at `stop`
PIECE_BYTES = 1 << 16
SECONDS_AFTER_REPORT = 2.0  # a forked child may hold the pipe open for longer
SECONDS_TO_END = 10.0  # of a program, between TERM and KILL: a flow run has to tell the server that it was ended
LAST_PIECES = 64  # what is read after the end: more than a pipe holds, yet not without end
MAX_CHARACTERS = 4_000  # of a line; what comes after them is left out
MAX_BYTES = 4 * MAX_CHARACTERS  # enough for that many characters in UTF-8
SECONDS_BETWEEN_REDRAWS = 0.5
# PostgreSQL refuses NUL in a text, and terminals obey the rest; tabs and colours stay.
HARMLESS = dict.fromkeys((code for code in range(32) if chr(code) not in "\t\x1b"), "\N{REPLACEMENT CHARACTER}")
OnLine = Callable[[str], None]


class Line(NamedTuple):
    """A line, or the state of one that is being redrawn."""

    text: str
    complete: bool = True
    new: bool = True  # not shown as a state before


class LineSplitter:
    """Split a stream into lines; of a line that is redrawn with carriage returns only the last state counts."""

    def __init__(self) -> None:
        self._state = _Text()  # the last whole state of a line that is being redrawn
        self._text = _Text()  # what came after the last line feed or carriage return
        self._shown: str | None = None
        self._shown_at = float("-inf")

    def feed(self, piece: bytes, now: float) -> Iterator[Line]:
        """Yield the lines that end in `piece`, and at most one state of an unfinished one."""
        for part in re.split(rb"([\r\n])", piece):
            if part == b"\n":
                yield self._finish()
            elif part == b"\r":
                self._state = self._text if self._text.start.strip() else self._state
                self._text = _Text(redraws=True)
            else:
                self._text.add(part)
        yield from self._show(self._state, now)

    def pause(self, now: float) -> Iterator[Line]:
        """Yield the state of a bar when nothing has come for a moment: it is not in the middle of being drawn."""
        yield from self._show(self._text if self._text.redraws and self._text.start.strip() else self._state, now)

    def close(self) -> Iterator[Line]:
        """Yield the last line, if it had no end."""
        if self._text.start or self._state.start:
            yield self._finish()

    def _finish(self) -> Line:
        text, shown = str(self._text if self._text.start else self._state), self._shown
        self._state, self._text, self._shown = _Text(), _Text(), None
        return Line(text, new=text != shown)

    def _show(self, text: "_Text", now: float) -> Iterator[Line]:
        if text.start and now - self._shown_at >= SECONDS_BETWEEN_REDRAWS and str(text) != self._shown:
            self._shown, self._shown_at = str(text), now
            yield Line(self._shown, complete=False)


class _Text:
    """The start of a line and the length of all of it."""

    def __init__(self, redraws: bool = False) -> None:
        self.start, self.length, self.redraws = bytearray(), 0, redraws

    def add(self, piece: bytes) -> None:
        self.start += piece[: MAX_BYTES - len(self.start)]
        self.length += len(piece)

    def __str__(self) -> str:
        text = self.start.decode("utf-8", errors="replace").translate(HARMLESS)
        cut = len(text) > MAX_CHARACTERS or self.length > len(self.start)
        return f"{text[:MAX_CHARACTERS]} … (line of {self.length:,} bytes cut)" if cut else text


class CommandResult(NamedTuple):
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


def find_flow() -> int:
    """Return the number of the process with which the tree of this one ends; its own where it is in none."""
    _, flow, *_ = [*os.environ.get(supervisor.COOKIE, "").split(":"), ""]
    return int(flow) if flow.isdecimal() else os.getpid()


def run_command(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    on_line: OnLine,
    timeout: float | None = None,
    notice: float = 0.0,
    grace: float = 5.0,
    cores: Collection[int] | None = None,
    stop: threading.Event | None = None,
    cookie: str | None = None,
    own_output: bool = False,
) -> CommandResult:
    """Run `command` in `cwd` and return when no process of its tree is left, or raise what `on_line` raised.

    `env`: all of its environment; this process's own where it is None. `on_line` gets each line, and a progress bar's
    state twice a second at most; with `own_output` the command writes where this process writes, and only what is to be
    said about it is handed on. The tree is ended `timeout` seconds after the start, and when `stop` is set or this
    process is gone; then the command alone gets HUP and has `notice` seconds to end what it has started, the rest TERM
    and, after `grace` seconds, KILL. `cores`: those that the command may use. `cookie`: what `new_cookie` makes; where
    none is given, `cwd` is the workspace. Raises OSError where there is no `cwd`, or no process can be started.
    """
    if stop and stop.is_set():
        return CommandResult(128 + signal.SIGTERM, "stopped", [], 0.0)
    began, cookie = time.monotonic(), cookie or new_cookie(cwd)
    report_read, report_write = os.pipe()
    settings = [grace, notice, math.inf if timeout is None else timeout, ",".join(map(str, sorted(cores or ()))) or "-"]
    program = [sys.executable, "-I", "-S", Path(supervisor.__file__).resolve(), *settings, os.getpid(), report_write]
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def hand_on(lines: Iterable[Line]) -> None:
        for line in lines:
            if line.complete:
                tail.append(line.text)
            if line.new:
                on_line(line.text)

    report = b""
    with os.fdopen(report_read, "rb", buffering=0) as report_file:
        try:
            process = subprocess.Popen(
                [*map(str, program), *command], cwd=cwd,
                env={**(os.environ if env is None else env), supervisor.COOKIE: cookie}, bufsize=0,
                stdin=subprocess.PIPE, stdout=None if own_output else subprocess.PIPE,
                stderr=None if own_output else subprocess.STDOUT,
                pass_fds=(report_write,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(report_write)
        with process:
            try:
                report = _follow(process, report_file, hand_on, stop)
            finally:
                _ask_to_end(process)
                process.wait()
                if not report:
                    supervisor.end_processes(lambda: supervisor.find_by_cookie(lambda other: other == cookie), grace)
    reason, code, ended, stuck = (report.split(b"\n")[0].decode() or "lost 137 0 0").split()
    if reason == "lost":
        hand_on([Line(f"the supervisor of this command was killed (code {code}), so its processes were ended")])
    elif reason == "exit" and ended != "0":
        hand_on([Line(f"{ended} processes that the command left behind were ended")])
    if stuck != "0":
        hand_on([Line(f"{stuck} processes of this command cannot be ended")])
    reason = reason if reason in ("timeout", "stopped") else "exit"
    return CommandResult(int(code), reason, list(tail), time.monotonic() - began)


def _ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask by a byte, since a forked child may hold the pipe open."""
    assert process.stdin is not None
    with suppress(OSError):  # nobody listens any more
        process.stdin.write(b"s")


def _follow(
    process: subprocess.Popen[bytes], report_file: IO[bytes], hand_on: Callable[[Iterable[Line]], None],
    stop: threading.Event | None,
) -> bytes:  # fmt: skip
    """Hand on what the command writes until its tree has ended; return the report, empty where the supervisor died."""
    output, splitter, report, deadline = process.stdout, LineSplitter(), b"", math.inf
    poll = select.poll()
    poll.register(report_file, select.POLLIN)
    if output:
        os.set_blocking(output.fileno(), False)
        poll.register(output, select.POLLIN)
    while time.monotonic() <= deadline:
        if stop and stop.is_set():
            _ask_to_end(process)
            stop = None
        ready = {descriptor for descriptor, _ in poll.poll(POLL_MILLISECONDS)}
        if output and output.fileno() in ready:
            piece = output.read(PIECE_BYTES)  # None where nothing is there yet
            hand_on(splitter.feed(piece or b"", time.monotonic()))
            if piece == b"":
                poll.unregister(output)
        else:
            hand_on(splitter.pause(time.monotonic()))
        if report_file.fileno() in ready:
            if not (piece := report_file.read(1024)):
                break
            report += piece
            deadline = min(deadline, time.monotonic() + SECONDS_AFTER_REPORT)
    for piece in takewhile(bool, (output.read(PIECE_BYTES) for _ in range(LAST_PIECES) if output)):
        hand_on(splitter.feed(piece, time.monotonic()))
    hand_on(splitter.close())
    return report


@contextmanager
def catch_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Within the block call `handle` for Ctrl-C, TERM and a closed terminal; what is ignored goes on being ignored.

    It is caught all the same: a Prefect worker turns TERM into INT, and would not end had it inherited to ignore INT.
    """
    former = {number: signal.getsignal(number) for number in supervisor.END_SIGNALS}
    for number, handler in former.items():
        signal.signal(number, lambda got, _, ignored=handler is signal.SIG_IGN: None if ignored else handle(got))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class ProgramGroup:
    """Programs in supervised process trees; the last one started is the first one ended.

    `over` is set when all are to end. `failed`: name and result of the first program that ended by itself.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.over = threading.Event()
        self.failed: tuple[str, CommandResult] | None = None
        self._folder, self._environment, self._ends = folder, environment, ExitStack()

    def start(self, name: str, command: Sequence[str], on_line: OnLine, **more: str) -> Callable[[], None]:
        """Start a program that is to run until the end; `on_line` gets its lines, its environment has `more`.

        Returns a function that ends it, and returns when no process of it is left.
        """
        stop = threading.Event()

        def follow() -> None:
            result = self.run(command, on_line, stop, **more)
            if not stop.is_set():
                self.failed = self.failed or (name, result)
                self.over.set()

        def end() -> None:
            stop.set()
            thread.join()

        thread = threading.Thread(target=follow, name=name, daemon=True)
        self._ends.callback(end)
        thread.start()
        return end

    def run(
        self, command: Sequence[str], on_line: OnLine = lambda _: None, stop: threading.Event | None = None, **more: str
    ) -> CommandResult:
        """Run a program to its end, or until it is to stop: when all is over, if no other event is given."""
        env, stop = {**self._environment, **more}, stop or self.over
        return run_command(command, cwd=self._folder, env=env, on_line=on_line, grace=SECONDS_TO_END, stop=stop)

    def end(self) -> None:
        """End every program."""
        self.over.set()
        self._ends.close()


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
