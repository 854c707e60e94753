"""Run programs that live and end together: when one ends, all are to end."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.process_tree import CommandResult, run_command

SECONDS_TO_END = 10.0  # between TERM and KILL: a flow run has to tell the server that it was ended


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


@contextmanager
def set_on_signals(over: threading.Event) -> Iterator[None]:
    """Within the block Ctrl-C, TERM and a closed terminal set `over`; what is ignored goes on being ignored.

    It is caught all the same: a Prefect worker turns TERM into INT, and would not end had it inherited to ignore INT.
    """
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in former.items():
        signal.signal(number, (lambda *_: None) if handler is signal.SIG_IGN else (lambda *_: over.set()))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
