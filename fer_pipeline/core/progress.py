"""Show progress on the error stream: a bar on a terminal, a line every half minute in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 30.0
Listener = Callable[["Progress", int], None]
_listeners: list[Listener] = []  # of every progress that begins


class Progress:
    """How far some work is: call it with a number of finished items; its listeners are called, too.

    `total` is None where the end is unknown.
    """

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.listeners: list[Listener] = []
        self._skipped = 0
        self._started = time.monotonic()

    def __call__(self, items: int) -> None:
        """Counts finished items; a negative number takes back what has to be done again."""
        self.done += items
        for listener in self.listeners:
            listener(self, items)

    def skip(self, items: int) -> None:
        """Counts items that were there already and say nothing about the rate."""
        self._skipped += items
        self(items)

    @property
    def rate(self) -> float:
        """Items per second, skipped ones left out."""
        return max(self.done - self._skipped, 0) / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None where it cannot be known."""
        return None if self.total is None or self.rate == 0 else max(self.total - self.done, 0) / self.rate


@contextmanager
def progress(description: str, total: int | None, unit: str = "items") -> Iterator[Progress]:
    """Yields the progress of some work, shown until the block ends."""
    advance = Progress(description, total, unit)
    advance.listeners.extend(_listeners)
    if sys.stderr.isatty():
        with _bar(advance):
            yield advance
    else:
        advance.listeners.append(_Lines())
        yield advance


@contextmanager
def with_listener(listener: Listener) -> Iterator[None]:
    """Calls the listener for every progress that begins in the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def _bar(advance: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(advance.description, total=advance.total, text=describe(advance))
        advance.listeners.append(lambda now, items: bar.update(task, completed=now.done, text=describe(now)))
        yield


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, now: Progress, items: int) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            sys.stderr.write(f"{now.description}: {describe(now)}\n")
            sys.stderr.flush()


def describe(now: Progress) -> str:
    """Describes a progress: `1,200/5,000 faces, 92.1 faces/s, 41 s left`."""
    total = f"/{now.total:,}" if now.total else ""
    left = now.seconds_left
    rate = f", {now.rate:,.1f} {now.unit}/s" if now.rate > 0 else ""
    return f"{now.done:,}{total} {now.unit}{rate}" + (f", {format_seconds(left)} left" if left is not None else "")


def format_seconds(seconds: float) -> str:
    """Formats a duration in the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
