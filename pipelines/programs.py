"""Programs that live and die together. In: commands. Out: their lines; when one ends, `over` is set for all."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipelines.supervised import Ended, run

SECONDS_TO_END = 10.0  # between TERM and KILL: a flow run has to tell the server that it was ended


class Programs:
    """Each program in a supervised tree of its own; the last one started is the first one ended."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.over = threading.Event()
        self.fallen: tuple[str, Ended] | None = None
        self._folder, self._environment = folder, environment
        self._running: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def start(self, name: str, command: Sequence[str], on_line: Callable[[str], None], **more: str) -> None:
        """Starts a program that is to run until the end; `on_line` gets its lines, its environment has `more`."""
        stop = threading.Event()

        def follow() -> None:
            ended = self._run(command, on_line, stop, more)
            if not stop.is_set():
                self.fallen = self.fallen or (name, ended)
                self.over.set()

        thread = threading.Thread(target=follow, name=name, daemon=True)
        self._running[name] = thread, stop
        thread.start()

    def finish(self, command: Sequence[str]) -> Ended:
        """Runs a program to its end, or until all is over; its last lines are in what comes back."""
        return self._run(command, lambda _: None, self.over, {})

    def end_one(self, name: str) -> None:
        """Ends a program, and returns when no process of it is left."""
        thread, stop = self._running.pop(name)
        stop.set()
        thread.join()

    def end(self) -> None:
        """Ends every program."""
        self.over.set()
        for name in reversed(list(self._running)):
            self.end_one(name)

    def _run(
        self, command: Sequence[str], on_line: Callable[[str], None], stop: threading.Event, more: Mapping[str, str]
    ) -> Ended:
        environment = {**self._environment, **more}
        return run(command, cwd=self._folder, env=environment, on_line=on_line, grace=SECONDS_TO_END, stop=stop)


@contextmanager
def signals_end(over: threading.Event) -> Iterator[None]:
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
