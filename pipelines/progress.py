"""Show the progress of a running stage as a progress bar and now and then as a line of the task's log.

A stage writes `.store/progress/<stage>@<set>.json` with `done`, `total`, `unit`, `rate`, `seconds_left`, `state` and
`pid`; a stage that writes none has no bar.
"""

import contextvars
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipelines.artifacts import is_number

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_BETWEEN_LINES = 60.0
AMOUNTS = ("total", "rate", "seconds_left")
Logger = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def report_progress(workspace: Path, stage: str, log: Logger) -> Iterator[None]:
    """Follow what the stage writes until the block ends; a fault of the server is no fault of the stage."""
    over = threading.Event()
    run = contextvars.copy_context().run  # the artifact belongs to this task's run
    arguments = (_follow, workspace, stage, log, over)
    thread = threading.Thread(target=run, args=arguments, name=f"progress {stage}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_progress(path: Path, since: float) -> dict[str, Any] | None:
    """Return what a stage wrote since a time (seconds of the clock); None for nothing, or nothing readable."""
    try:
        if path.stat().st_mtime < since:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not _is_amount(content.get("done")):
        return None
    # What is no amount where one belongs is left out.
    return {name: value for name, value in content.items() if name not in AMOUNTS or _is_amount(value)}


def percent(progress: dict[str, Any]) -> float:
    """Return how much is done, 0 to 100; 0 where the total is unknown."""
    total = progress.get("total")
    return min(100.0, 100.0 * progress["done"] / total) if total else 0.0


def format_progress(stage: str, progress: dict[str, Any]) -> str:
    """Return `align@pool: 45,120 of 58,000 pictures, 310/s, 12 min left`."""
    total = f" of {progress['total']:,}" if progress.get("total") else ""
    text = f"{stage}: {progress['done']:,}{total} {progress.get('unit', 'items')}"
    if rate := progress.get("rate"):
        text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.1f}/s"
    seconds = progress.get("seconds_left")
    if seconds is None or progress.get("state") != "running":
        return text
    if seconds < 120:
        return f"{text}, {seconds:,.0f} s left"
    return f"{text}, {seconds / 60:,.0f} min left" if seconds < 7200 else f"{text}, {seconds / 3600:,.1f} h left"


def artifact_key(stage: str) -> str:
    """Return the key of a stage's bar; Prefect takes small letters, digits and dashes."""
    return "progress-" + re.sub("[^a-z0-9]", "-", stage.lower())


def _follow(workspace: Path, stage: str, log: Logger, over: threading.Event) -> None:
    name, _, key = stage.partition("@")
    path = workspace / ".store" / "progress" / f"{name}@{key}.json"
    since, last_line, shown, artifact, ended = time.time() - 1.0, time.monotonic(), "", None, False
    while not ended:
        ended = over.wait(SECONDS_BETWEEN_LOOKS)  # and look once more after the end
        progress = read_progress(path, since)
        if progress is None:
            continue
        text = format_progress(stage, progress)
        if text != shown:
            shown = text
            try:
                if artifact is None:
                    created = create_progress_artifact(percent(progress), key=artifact_key(stage), description=text)
                    artifact = created if isinstance(created, UUID) else None
                else:
                    update_progress_artifact(artifact, percent(progress), description=text)
            except Exception as error:
                log.debug("the progress of %s could not be shown: %s", stage, error)
        if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            log.info("%s", text)


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0
