"""What a running stage writes of its progress in, a progress bar and now and then a line of the task's log out.

A stage writes `.store/progress/<stage>@<set>.json` with `done`, `total`, `unit`, `rate`, `seconds_left`, `state` and
`pid`; a stage that writes none has no bar.
"""

import contextvars
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_BETWEEN_LINES = 60.0
AMOUNTS = ("total", "rate", "seconds_left")
Logger = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def reporting_progress(workspace: Path, stage: str, log: Logger) -> Iterator[None]:
    """Follows what the stage writes until the block ends; a fault of the server is no fault of the stage."""
    over = threading.Event()
    follower = _Follower(_place(workspace, stage), stage, log)
    run = contextvars.copy_context().run  # the artifact belongs to this task's run
    thread = threading.Thread(target=run, args=(follower.follow, over), name=f"progress {stage}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_progress(path: Path, since: float) -> dict[str, Any] | None:
    """What a stage wrote there since a time (seconds of the clock); None for nothing, or nothing that can be read."""
    try:
        if path.stat().st_mtime < since:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not _is_amount(content.get("done")):
        return None
    # What is no amount where one belongs is left out.
    return {name: one for name, one in content.items() if name not in AMOUNTS or _is_amount(one)}


def percent(now: dict[str, Any]) -> float:
    """How much is done, 0 to 100; 0 where the end is unknown."""
    total = now.get("total")
    return min(100.0, 100.0 * now["done"] / total) if total else 0.0


def told(stage: str, now: dict[str, Any]) -> str:
    """`align@pool: 45,120 of 58,000 pictures, 310/s, 12 min left`."""
    of = f" of {now['total']:,}" if now.get("total") else ""
    rate = (
        f", {now['rate']:,.0f}/s"
        if (now.get("rate") or 0) >= 10
        else f", {now['rate']:.1f}/s"
        if now.get("rate")
        else ""
    )
    left = now.get("seconds_left")
    ending = "" if left is None or now.get("state") != "running" else f", {_span(left)} left"
    return f"{stage}: {now['done']:,}{of} {now.get('unit', 'items')}{rate}{ending}"


def artifact_key(stage: str) -> str:
    """The key of a stage's bar; Prefect takes small letters, digits and dashes."""
    return "progress-" + "".join(one if one.isascii() and one.isalnum() else "-" for one in stage.lower())


class _Follower:
    def __init__(self, path: Path, stage: str, log: Logger) -> None:
        self._path, self._stage, self._log = path, stage, log
        self._since = time.time() - 1.0
        self._artifact: UUID | None = None
        self._shown = ""
        self._line = time.monotonic()

    def follow(self, over: threading.Event) -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            self._look()
        self._look()

    def _look(self) -> None:
        now = read_progress(self._path, self._since)
        if now is None:
            return
        text = told(self._stage, now)
        if text != self._shown:
            self._shown = text
            self._show(now, text)
        if time.monotonic() - self._line >= SECONDS_BETWEEN_LINES:
            self._line = time.monotonic()
            self._log.info("%s", text)

    def _show(self, now: dict[str, Any], text: str) -> None:
        try:
            if self._artifact is None:
                key = artifact_key(self._stage)
                made = create_progress_artifact(percent(now), key=key, description=text)
                self._artifact = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self._artifact, percent(now), description=text)
        except Exception as error:
            self._log.debug("the progress of %s could not be shown: %s", self._stage, error)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _place(workspace: Path, stage: str) -> Path:
    name, _, key = stage.partition("@")
    return workspace / ".store" / "progress" / f"{name}@{key}.json"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
