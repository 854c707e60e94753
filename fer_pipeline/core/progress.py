"""Progress on the error stream: a bar where a person watches, a line every half minute in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 30.0
Watcher = Callable[["Progress", int], None]
_LISTENERS: list[Watcher] = []


class Progress:
    """How far a piece of work is: call it with a number of items that were done; watchers hear of it.

    `total` is None where the end is unknown.
    """

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.watchers: list[Watcher] = []
        self._skipped = 0
        self._started = time.monotonic()

    def __call__(self, items: int) -> None:
        """Items were done; a negative number takes back what was lost."""
        self.done += items
        for watch in self.watchers:
            watch(self, items)

    def skip(self, items: int) -> None:
        """Items were there already: they say nothing of the rate."""
        self._skipped += items
        self(items)

    @property
    def rate(self) -> float:
        """Items a second, of those that were made."""
        return max(self.done - self._skipped, 0) / max(time.monotonic() - self._started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """None where nobody can know."""
        return None if self.total is None or self.rate == 0 else max(self.total - self.done, 0) / self.rate


@contextmanager
def progress(description: str, total: int | None, unit: str = "items") -> Iterator[Progress]:
    """Yields the progress of some work, shown until the block ends."""
    advance = Progress(description, total, unit)
    advance.watchers.extend(_LISTENERS)
    if sys.stderr.isatty():
        with _bar(advance):
            yield advance
    else:
        advance.watchers.append(_Lines())
        yield advance


@contextmanager
def overheard(listener: Watcher) -> Iterator[None]:
    """Every progress that begins in the block is heard by the listener, too."""
    _LISTENERS.append(listener)
    try:
        yield
    finally:
        _LISTENERS.remove(listener)


@contextmanager
def _bar(advance: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(advance.description, total=advance.total, told=told(advance))
        advance.watchers.append(lambda now, items: bar.update(task, completed=now.done, told=told(now)))
        yield


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, now: Progress, items: int) -> None:
        if time.monotonic() - self._last >= LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            sys.stderr.write(f"{now.description}: {told(now)}\n")
            sys.stderr.flush()


def told(now: Progress) -> str:
    """`1,200/5,000 faces, 92.1 faces/s, 41 s left`."""
    of = f"/{now.total:,}" if now.total else ""
    left = now.seconds_left
    rate = f", {now.rate:,.1f} {now.unit}/s" if now.rate > 0 else ""
    return f"{now.done:,}{of} {now.unit}{rate}" + (f", {span(left)} left" if left is not None else "")


def span(seconds: float) -> str:
    """A time in the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
