"""Show one bar in the Prefect UI for all stages of a run.

A running stage writes `.store/progress/<stage>@<set>.json` with `done`, `earlier`, `total`, `unit`, `rate`,
`seconds_left`, `state` and `pid`; one that writes none counts when it has ended.
"""

import contextvars
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from pipelines.artifacts import is_number, read_mapping

SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_BEFORE_ESTIMATE = 10.0
LEAST_SECONDS = 0.1  # of a stage, so that one that took nothing has a part of the bar
AMOUNTS = ("done", "earlier", "total", "rate", "seconds_left")


@contextmanager
def report_progress(workspace: Path, expected: Sequence[str], outcomes: Mapping[str, str]) -> Iterator[None]:
    """Show one bar for all stages that may run until the block ends; a fault of the server is no fault of the run.

    `outcomes` grows while they end. The longer a stage took last time, the more of the bar is its.
    """
    over, since, began = threading.Event(), time.time() - 1.0, time.monotonic()
    seconds = {stage: taken for stage in expected if (taken := _last_seconds(workspace, stage)) is not None}
    mean = sum(seconds.values()) / len(seconds) if seconds else 1.0
    weights = {stage: max(seconds.get(stage, mean), LEAST_SECONDS) for stage in expected}
    log = get_run_logger()

    def look() -> tuple[float, str]:
        running = {
            stage: now
            for stage in expected
            if stage not in outcomes and (now := read_progress(_progress_file(workspace, stage), since)) is not None
        }
        done = sum(weights[stage] for stage in expected if stage in outcomes)
        done += sum(weights[stage] * percent(now) / 100 for stage, now in running.items())
        share = done / sum(weights.values())
        texts = [format_run(share, time.monotonic() - began), *(format_progress(*one) for one in running.items())]
        return 100 * share, "\n\n".join(texts)

    def follow() -> None:
        shown, artifact, ended = "", None, False
        while not ended:
            ended = over.wait(SECONDS_BETWEEN_LOOKS)  # and look once more after the end
            share, text = look()
            if text != shown:
                shown = text
                try:
                    if artifact is None:
                        created = create_progress_artifact(share, key="progress", description=text)
                        artifact = created if isinstance(created, UUID) else None
                    else:
                        update_progress_artifact(artifact, share, description=text)
                except Exception as error:
                    log.debug("the progress could not be shown: %s", error)

    if not expected:
        yield
        return
    run = contextvars.copy_context().run  # the artifact belongs to this run
    thread = threading.Thread(target=run, args=(follow,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _progress_file(workspace: Path, stage: str) -> Path:
    name, _, key = stage.partition("@")
    return workspace / ".store" / "progress" / f"{name}@{key}.json"


def _last_seconds(workspace: Path, stage: str) -> float | None:
    """Return how long a stage took when it ran last; None where that is not known."""
    taken = read_mapping(workspace / ".store" / "provenance" / f"{stage}.json").get("seconds")
    return taken if is_number(taken) else None


def format_run(share: float, seconds: float) -> str:
    """Return `62 %, about 12 min left`, without the time until enough is done to tell."""
    text = f"{100 * share:.0f} %"
    if not 0.05 <= share < 1 or seconds < SECONDS_BEFORE_ESTIMATE:
        return text
    return f"{text}, about {_format_seconds(seconds * (1 - share) / share)} left"


def read_progress(path: Path, since: float) -> dict[str, Any] | None:
    """Return what a stage wrote since a time (seconds of the clock); None for nothing, or nothing readable."""
    try:
        content = read_mapping(path) if path.stat().st_mtime >= since else {}
    except OSError:
        return None
    # What is no amount where one belongs is left out.
    right = {name: value for name, value in content.items() if name not in AMOUNTS or (is_number(value) and value >= 0)}
    return right if "done" in right else None


def percent(progress: dict[str, Any]) -> float:
    """Return how much is done, 0 to 100; 0 where the total is unknown."""
    total = progress.get("total")
    return min(100.0, 100.0 * progress["done"] / total) if total else 0.0


def format_progress(stage: str, progress: dict[str, Any]) -> str:
    """Return `align@pool: 45,120 of 58,000 pictures, 310/s, 12 min left`."""
    total = f" of {progress['total']:,}" if progress.get("total") else ""
    text = f"{stage}: {progress['done']:,}{total} {progress.get('unit', 'items')}"
    text += f" ({earlier:,} of an earlier run)" if (earlier := progress.get("earlier")) else ""
    if rate := progress.get("rate"):
        text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.1f}/s"
    seconds = progress.get("seconds_left")
    if seconds is None or progress.get("state") != "running":
        return text
    return f"{text}, {_format_seconds(seconds)} left"


def _format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
