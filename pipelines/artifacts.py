"""Read the results of a workspace and publish them in the Prefect UI: stages, figures, mined faces, changes, report."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from pipelines.errors import FlowError
from pipelines.graph import Stage
from pipelines.repository import run_dvc

METRICS = Path("reports/metrics")
MINED = Path("data/mined/summary.json")
REPORT = Path("reports/index.html")
MAIN_FIGURES = ("mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd")
UP_TO_DATE = "Cached"
SMALL = 0.00005  # what four decimals would show as nothing


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


@dataclass(frozen=True)
class Change:
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
        files = json.loads(run_dvc(workspace, "metrics", "diff", "--json", "--all", rev))
    except (FlowError, ValueError):
        return None
    metrics: dict[tuple[str, str, str], float] = {}
    for path, figures in ((Path(name), figures) for name, figures in files.items()):
        if path.is_relative_to(METRICS) and len(path.parts) == 4:
            old = _flatten({name: change.get("old") for name, change in figures.items()})
            metrics |= {(path.parent.name, path.stem, name): value for name, value in old.items()}
    mined = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        try:
            run_dvc(workspace, "get", ".", MINED.as_posix(), "--rev", rev, "--out", str(out))
            mined = _read_json(out)
        except FlowError:
            pass
    return Results(metrics, mined) if metrics or mined else None


def compare_results(before: Results, after: Results) -> list[Change]:
    """Return all figures that differ, in order of name."""
    old, new = before.flat(), after.flat()
    names = sorted(old.keys() | new.keys())
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def publish_run(workspace: Path, stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    """Publish all that there is to see of a run; a server that does not take it fails no run."""

    def publish_changes() -> None:
        if any(state.name != UP_TO_DATE for state in states.values()):
            if before := read_results_at(workspace, "HEAD"):
                publish_difference(compare_results(before, read_results(workspace)), "the last commit")

    parts: list[Callable[[], None]] = [
        lambda: _publish_stages(stages, states),
        lambda: publish_results(read_results(workspace)),
        publish_changes,
        lambda: _publish_report(workspace / REPORT),
    ]
    for publish in parts:
        try:
            publish()
        except Exception as error:
            get_run_logger().warning("not everything could be shown: %s", error)


def publish_results(results: Results) -> None:
    """Publish the table of figures, and of mined faces by class with margin and estimated precision."""
    if results.metrics:
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for recipe, target, _ in results.metrics:
            figures = {name: results.metrics.get((recipe, target, name)) for name in MAIN_FIGURES}
            texts = {name: f"{value:.4f}" for name, value in figures.items() if value is not None}
            rows[recipe, target] = {"recipe": recipe, "target": target, **texts}
        table = list(rows.values())
        create_table_artifact(key="metrics", table=table, description="Recipes on the test splits, mean over seeds")
    if results.mined:
        kept = results.mined.get("kept")
        description = "Mined faces" if kept is None else f"Mined faces: {_format(kept)} kept"
        create_table_artifact(key="mined", table=_mined_rows(results.mined), description=description)


def publish_difference(changes: Sequence[Change], against: str) -> None:
    """Publish what changed in figures and mined counts, as a table; a sentence where nothing did."""
    create_markdown_artifact(
        key="difference", markdown=format_difference(changes, against), description=f"Changes since {against}"
    )


def format_difference(changes: Sequence[Change], against: str) -> str:
    """Return a Markdown table of changes; characters of names from files are escaped."""
    against = _escape(against)
    if not changes:
        return f"No figure differs from {against}."
    count = "1 figure differs" if len(changes) == 1 else f"{len(changes)} figures differ"
    lines = [f"{count} from {against}.", "", "| | before | now | change |", "|---|---:|---:|---:|"]
    for one in changes:
        cells = (_escape(one.what), _format(one.before), _format(one.after), _format(one.difference, sign=True))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _publish_stages(stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    rows = [
        {"stage": address, "state": str(states[address].name), "what it does": stage.description}
        for address, stage in stages.items()
        if address in states
    ]
    create_table_artifact(key="stages", table=rows, description="The stages of this run, in the order of the graph")


def _mined_rows(mined: Mapping[str, Any]) -> list[dict[str, str]]:
    margins, rows = _mapping(mined.get("margins")), []
    for label, counts in _mapping(mined.get("by_class")).items():
        counts = _mapping(counts)
        row = {"class": str(label), "kept": _format(counts.get("kept")), "margin": _format(margins.get(label))}
        precision = [counts.get(name) for name in ("precision", "low", "high")]
        if all(map(is_number, precision)):
            row["estimated precision"] = "{:.3f} [{:.3f}, {:.3f}]".format(*precision)
        rows.append(row)
    return rows


def _publish_report(report: Path) -> None:
    if report.is_file():
        site = os.environ.get("PIPELINES_REPORT_URL")
        link = f"{site.rstrip('/')}/{report.name}" if site else report.as_uri()
        create_link_artifact(link=link, link_text="The report", key="report", description=str(report))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(_mapping(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError):
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
