"""Show progress on the error stream: a bar on a terminal, lines at short intervals in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LINE_EVERY_SECONDS = 15.0
SECONDS_BEFORE_ESTIMATE = 5.0  # after the first items: the time that is left after a few slow ones is no estimate
Listener = Callable[["Progress", int], None]
_listeners: list[Listener] = []  # of every progress that begins


@dataclass(eq=False)
class Progress:
    """How far some work is: call it with a number of finished items; its listeners are called, too."""

    description: str
    total: int | None  # None where the end is unknown
    unit: str
    listeners: list[Listener] = field(default_factory=lambda: [*_listeners])
    done: int = 0
    earlier: int = 0  # of those that are done
    _started: float = field(default_factory=lambda: time.monotonic())
    _first: tuple[float, int] | None = None  # when the first items of this run came, and how many

    def __call__(self, items: int, *, earlier: bool = False, planned: int = 0) -> None:
        """Counts finished items; a negative number takes back what has to be done again.

        Those of an `earlier` run say nothing about the rate. `planned` is added to the total: how many more items come
        than was known, or fewer.
        """
        self.done += items
        if self.total is not None:
            self.total += planned
        if earlier:
            self.earlier += items
        elif self._first is None and items > 0:
            self._first = time.monotonic(), items
        for listener in self.listeners:
            listener(self, items)

    @property
    def rate(self) -> float:
        """Items of this run per second, without those that came first and the start that they waited for."""
        made, since = self.done - self.earlier, self._started
        if self._first is not None and made > self._first[1]:
            since, first = self._first
            made -= first
        return max(made, 0) / max(time.monotonic() - since, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None where it cannot be known, or not yet."""
        if self.total is None or self._first is None or self.done - self.earlier <= self._first[1]:
            return None
        if time.monotonic() - self._first[0] < SECONDS_BEFORE_ESTIMATE:
            return None
        return max(self.total - self.done, 0) / self.rate


@contextmanager
def progress(description: str, total: int | None, unit: str = "items") -> Iterator[Progress]:
    """Yields the progress of some work, shown until the block ends."""
    advance = Progress(description, total, unit)
    if not sys.stderr.isatty():
        finished = threading.Event()
        # By a thread of its own, so that a line comes also where one item takes long.
        writer = threading.Thread(target=_write_lines, args=(advance, finished), daemon=True)
        writer.start()
        try:
            yield advance
        finally:
            finished.set()
            writer.join()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, text=describe(advance))

        def show(now: Progress, items: int) -> None:
            bar.update(task, completed=now.done, total=now.total, text=describe(now))

        advance.listeners.append(show)
        yield advance


def _write_lines(now: Progress, finished: threading.Event) -> None:
    while not finished.wait(LINE_EVERY_SECONDS):
        sys.stderr.write(f"{now.description}: {describe(now)}\n")
        sys.stderr.flush()


@contextmanager
def with_listener(listener: Listener) -> Iterator[None]:
    """Calls the listener for every progress that begins in the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def describe(now: Progress) -> str:
    """Describes a progress: `1,200/5,000 faces (400 of an earlier run), 92.1 faces/s, 41 s left`."""
    total = f"/{now.total:,}" if now.total else ""
    left = now.seconds_left
    rate = f", {now.rate:,.1f} {now.unit}/s" if now.rate > 0 else ""
    earlier = f" ({now.earlier:,} of an earlier run)" if now.earlier else ""
    return f"{now.done:,}{total} {now.unit}{earlier}{rate}" + (
        f", {format_seconds(left)} left" if left is not None else ""
    )


def format_seconds(seconds: float) -> str:
    """Formats a duration in the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
