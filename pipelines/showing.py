"""What a person sees in the Prefect UI beside the tasks: stages, figures, mined faces, what changed, the report."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from pipelines.graph import Stage
from pipelines.results import Change, Results, changes, results_at, results_now

REPORT = Path("reports/index.html")
MAIN_FIGURES = ("mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd")
UP_TO_DATE = "Cached"


def show(workspace: Path, stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    """Publishes what there is; a server that does not take it fails no run."""
    try:
        _stages(stages, states)
        now = results_now(workspace)
        publish_results(now)
        if any(state.name != UP_TO_DATE for state in states.values()):
            before = results_at(workspace, "HEAD")
            if before is not None:
                publish_difference(changes(before, now), "the last commit")
        _report(workspace)
    except Exception as error:
        get_run_logger().warning("not everything could be shown: %s", error)


def publish_results(now: Results) -> None:
    """The table of figures, and of mined faces by class with margin and estimated precision."""
    if now.metrics:
        rows = [
            {"recipe": recipe, "target": target}
            | {
                name: f"{now.metrics[recipe, target, name]:.4f}"
                for name in MAIN_FIGURES
                if (recipe, target, name) in now.metrics
            }
            for recipe, target in dict.fromkeys((recipe, target) for recipe, target, _ in now.metrics)
        ]
        create_table_artifact(key="metrics", table=rows, description="Recipes on the test splits, mean over seeds")
    if now.mined:
        rows = list(_mined_rows(now.mined))
        kept = now.mined.get("kept")
        create_table_artifact(
            key="mined", table=rows, description=f"Mined faces: {kept:,} kept" if kept else "Mined faces"
        )


def publish_difference(found: Sequence[Change], against: str) -> None:
    """What changed in figures and mined counts, as a table; a sentence where nothing did."""
    create_markdown_artifact(
        key="difference", markdown=difference_table(found, against), description=f"Changes since {against}"
    )


def difference_table(found: Sequence[Change], against: str) -> str:
    """A Markdown table of changes; names from files are kept from meaning anything in it."""
    if not found:
        return f"No figure differs from {against}."
    lines = [f"{len(found)} figures differ from {against}.", "", "| | before | now | change |", "|---|---:|---:|---:|"]
    for one in found:
        cells = (_safe(one.what), _number(one.before), _number(one.after), _number(one.difference, sign=True))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _stages(stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    rows = [
        {"stage": address, "state": str(states[address].name), "what it does": stage.description}
        for address, stage in stages.items()
        if address in states
    ]
    create_table_artifact(key="stages", table=rows, description="The stages of this run, in walking order")


def _mined_rows(mined: Mapping[str, Any]) -> Sequence[dict[str, str]]:
    margins = mined.get("margins", {})
    rows = []
    for label, counts in mined.get("by_class", {}).items():
        row = {"class": str(label), "kept": f"{counts.get('kept', 0):,}", "margin": _number(margins.get(label))}
        if counts.get("precision") is not None:
            row["estimated precision"] = f"{counts['precision']:.3f} [{counts['low']:.3f}, {counts['high']:.3f}]"
        rows.append(row)
    return rows


def _report(workspace: Path) -> None:
    if not (workspace / REPORT).is_file():
        return
    served = os.environ.get("PIPELINES_REPORT_URL")
    link = f"{served.rstrip('/')}/{REPORT.name}" if served else (workspace / REPORT).as_uri()
    create_link_artifact(link=link, link_text="The report", key="report", description=f"{workspace / REPORT}")


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4f}"
    return f"+{text}" if sign and value > 0 else text


def _safe(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "|\\`*_[]<>" else letter for letter in text.replace("\n", " "))
