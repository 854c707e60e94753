"""Progress on the error stream: a bar where a person watches, a line every half minute in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_SECONDS = 30.0


@contextmanager
def progress(description: str, total: int | None, unit: str = "items") -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`. `total` may be None where the end is unknown."""
    if sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _lines(description, total, unit)


@contextmanager
def _bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit if total else "{task.completed:,.0f} " + unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _lines(description: str, total: int | None, unit: str) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last < LINE_EVERY_SECONDS:
            return
        last = now
        rate = done / (now - start)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate > 0 else ""
        of = f"/{total:,}" if total else ""
        sys.stderr.write(f"{description}: {done:,}{of} {unit}, {rate:,.1f} {unit}/s{left}\n")
        sys.stderr.flush()

    return advance
