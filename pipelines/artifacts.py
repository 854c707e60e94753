"""Publish in the Prefect UI what a run does and brings: progress bars, stages, figures, mined faces, changes, report.

A running stage writes `.store/progress/<stage>@<set>.json` with `done`, `total`, `unit`, `rate`, `seconds_left`,
`state` and `pid`; a stage that writes none has no bar. Results are read from the files of `evaluate` and `mine`.
"""

import contextvars
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from pipelines import FlowError
from pipelines.documents import DocumentError, parse_json, read_json
from pipelines.repository import run_dvc
from pipelines.workspace import Stage

METRICS = Path("reports/metrics")
MINED = Path("data/mined/summary.json")
REPORT = Path("reports/index.html")
MAIN_FIGURES = ("mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd")
UP_TO_DATE = "Cached"
SMALL = 0.00005  # what four decimals would show as nothing
SECONDS_BETWEEN_LOOKS = 3.0
SECONDS_BETWEEN_LINES = 60.0
AMOUNTS = ("done", "total", "rate", "seconds_left")
Logger = logging.Logger | logging.LoggerAdapter[Any]


@dataclass(frozen=True)
class Results:
    """`metrics`: figure by (recipe, target, name). `mined`: the summary that `mine` writes, or nothing."""

    metrics: dict[tuple[str, str, str], float] = field(default_factory=dict)
    mined: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """Return all figures of mining and of the metrics by a name for people."""
        figures = {f"{recipe} on {target}: {name}": value for (recipe, target, name), value in self.metrics.items()}
        mined = {f"mined: {name}": self.mined.get(name) for name in ("kept", "passed")}
        for label, counts in _mapping(self.mined.get("by_class")).items():
            mined[f"mined {label}: kept"] = _mapping(counts).get("kept")
        mined |= {f"margin of {label}": value for label, value in _mapping(self.mined.get("margins")).items()}
        return figures | {name: float(value) for name, value in mined.items() if is_number(value)}


class Change(NamedTuple):
    """One figure that differs; None where it was not there before, or is not there now."""

    what: str
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """After less before, where there are both."""
        return None if self.before is None or self.after is None else self.after - self.before


def read_results(workspace: Path) -> Results:
    """Return the figures of `evaluate` and the summary of `mine` that lie in a workspace."""
    metrics = {
        (path.parent.name, path.stem, name): value
        for path in sorted((workspace / METRICS).glob("*/*.json"))
        for name, value in _flatten(_read_json(path)).items()
    }
    return Results(metrics, _read_json(workspace / MINED))


def read_results_at(workspace: Path, rev: str) -> Results | None:
    """Return what a revision's dvc.lock names, from DVC's cache or remote; None where it has none."""
    try:
        printed = run_dvc(workspace, "metrics", "diff", "--json", "--all", rev)
        files = parse_json(printed, finite=False)  # a metric may be NaN, and is none then
    except (FlowError, DocumentError):
        return None
    metrics = {
        (path.parent.name, path.stem, name): value
        for path, figures in ((Path(path), figures) for path, figures in files.items())
        if path.is_relative_to(METRICS) and len(path.parts) == 4
        for name, value in _flatten({name: change.get("old") for name, change in figures.items()}).items()
    }
    mined = {}
    with suppress(FlowError), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        run_dvc(workspace, "get", ".", MINED.as_posix(), "--rev", rev, "--out", str(out))
        mined = _read_json(out)
    return Results(metrics, mined) if metrics or mined else None


def compare_results(before: Results, after: Results) -> list[Change]:
    """Return all figures that differ, in order of name."""
    old, new = before.flat(), after.flat()
    names = sorted(old.keys() | new.keys())
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def publish_run(workspace: Path, stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    """Publish all that there is to see of a run; a server that does not take it fails no run."""
    report, site = workspace / REPORT, os.environ.get("PIPELINES_REPORT_URL")
    with _warn_of_errors():
        rows = [
            {"stage": address, "state": str(states[address].name), "what it does": stage.description}
            for address, stage in stages.items()
            if address in states
        ]
        create_table_artifact(key="stages", table=rows, description="The stages of this run, in the order of the graph")
    with _warn_of_errors():
        publish_results(read_results(workspace))
    with _warn_of_errors():
        changed = any(state.name != UP_TO_DATE for state in states.values())
        if changed and (before := read_results_at(workspace, "HEAD")):
            publish_difference(compare_results(before, read_results(workspace)), "the last commit")
    with _warn_of_errors():
        if report.is_file():
            link = f"{site.rstrip('/')}/{report.name}" if site else report.as_uri()
            create_link_artifact(link=link, link_text="The report", key="report", description=str(report))


@contextmanager
def _warn_of_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not everything could be shown: %s", error)


def publish_results(results: Results) -> None:
    """Publish the table of figures, and of mined faces by class with margin and estimated precision."""
    rows: dict[Any, dict[str, str]] = {}
    for recipe, target, _ in results.metrics:
        figures = {name: results.metrics.get((recipe, target, name)) for name in MAIN_FIGURES}
        texts = {name: f"{value:.4f}" for name, value in figures.items() if value is not None}
        rows[recipe, target] = {"recipe": recipe, "target": target, **texts}
    if rows:
        description = "Recipes on the test splits, mean over seeds"
        create_table_artifact(key="metrics", table=list(rows.values()), description=description)
    if not results.mined:
        return
    kept, margins, rows = results.mined.get("kept"), _mapping(results.mined.get("margins")), {}
    for label, counts in _mapping(results.mined.get("by_class")).items():
        counts = _mapping(counts)
        rows[label] = {"class": str(label), "kept": _format(counts.get("kept")), "margin": _format(margins.get(label))}
        precision = [counts.get(name) for name in ("precision", "low", "high")]
        if all(map(is_number, precision)):
            rows[label]["estimated precision"] = "{:.3f} [{:.3f}, {:.3f}]".format(*precision)
    description = "Mined faces" if kept is None else f"Mined faces: {_format(kept)} kept"
    create_table_artifact(key="mined", table=list(rows.values()), description=description)


def publish_difference(changes: Sequence[Change], against: str) -> None:
    """Publish what changed in figures and mined counts, as a table; a sentence where nothing did."""
    text, description = format_difference(changes, against), f"Changes since {against}"
    create_markdown_artifact(key="difference", markdown=text, description=description)


def format_difference(changes: Sequence[Change], against: str) -> str:
    """Return a Markdown table of changes; characters of names from files are escaped."""
    against = _escape(against)
    if not changes:
        return f"No figure differs from {against}."
    count = "1 figure differs" if len(changes) == 1 else f"{len(changes)} figures differ"
    lines = [f"{count} from {against}.", "", "| | before | now | change |", "|---|---:|---:|---:|"]
    for change in changes:
        figures = _format(change.before), _format(change.after), _format(change.difference, sign=True)
        lines.append("| " + " | ".join([_escape(change.what), *figures]) + " |")
    return "\n".join(lines)


@contextmanager
def report_progress(workspace: Path, stage: str, log: Logger) -> Iterator[None]:
    """Follow what the stage writes until the block ends; a fault of the server is no fault of the stage."""
    over, (name, _, key), since = threading.Event(), stage.partition("@"), time.time() - 1.0

    def follow() -> None:
        last_line, shown, artifact, ended = time.monotonic(), "", None, False
        while not ended:
            ended = over.wait(SECONDS_BETWEEN_LOOKS)  # and look once more after the end
            progress = read_progress(workspace / ".store" / "progress" / f"{name}@{key}.json", since)
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

    run = contextvars.copy_context().run  # the artifact belongs to this task's run
    thread = threading.Thread(target=run, args=(follow,), name=f"progress {stage}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def read_progress(path: Path, since: float) -> dict[str, Any] | None:
    """Return what a stage wrote since a time (seconds of the clock); None for nothing, or nothing readable."""
    try:
        content = _read_json(path) if path.stat().st_mtime >= since else {}
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
    if rate := progress.get("rate"):
        text += f", {rate:,.0f}/s" if rate >= 10 else f", {rate:.1f}/s"
    seconds = progress.get("seconds_left")
    if seconds is None or progress.get("state") != "running":
        return text
    left = f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
    return f"{text}, {left if seconds < 7200 else f'{seconds / 3600:,.1f} h'} left"


def artifact_key(stage: str) -> str:
    """Return the key of a stage's bar; Prefect takes small letters, digits and dashes."""
    return "progress-" + re.sub("[^a-z0-9]", "-", stage.lower())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(_mapping(read_json(path, finite=False)))  # what is no number is left out one by one
    except (OSError, DocumentError):
        return {}


def _flatten(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers by name, inner ones as `by_class.joy`, as DVC names them."""
    figures = {name: float(value) for name, value in content.items() if is_number(value)}
    inner = {name: _flatten(value) for name, value in content.items() if isinstance(value, Mapping)}
    return figures | {f"{name}.{key}": value for name, values in inner.items() for key, value in values.items()}


def _mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping from a file; an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tell whether a value from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _format(value: Any, *, sign: bool = False) -> str:
    if not is_number(value):
        return "-"
    whole, small = value == int(value), 0 < abs(value) < SMALL
    text = f"{value:,.0f}" if whole else f"{value:.1e}" if small else f"{value:.4f}"
    return f"+{text}" if sign and value > 0 else text


def _escape(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "|\\`*_[]<>&~$" else letter for letter in " ".join(text.split()))
