"""What a person sees in the Prefect UI beside the tasks: stages, figures, mined faces, what changed, the report."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger

from pipelines.graph import Stage
from pipelines.results import Change, Results, changes, is_number, mapping, results_at, results_now

REPORT = Path("reports/index.html")
MAIN_FIGURES = ("mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd")
UP_TO_DATE = "Cached"
SMALL = 0.00005  # what four decimals would show as nothing


def show(workspace: Path, stages: Mapping[str, Stage], states: Mapping[str, State[Any]]) -> None:
    """Publishes what there is; a server that does not take it fails no run."""

    def results() -> None:
        publish_results(results_now(workspace))

    def difference() -> None:
        if any(state.name != UP_TO_DATE for state in states.values()):
            before = results_at(workspace, "HEAD")
            if before is not None:
                publish_difference(changes(before, results_now(workspace)), "the last commit")

    for part in (partial(_stages, stages, states), results, difference, partial(_report, workspace)):
        try:
            part()
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
            key="mined", table=rows, description="Mined faces" if kept is None else f"Mined faces: {_number(kept)} kept"
        )


def publish_difference(found: Sequence[Change], against: str) -> None:
    """What changed in figures and mined counts, as a table; a sentence where nothing did."""
    create_markdown_artifact(
        key="difference", markdown=difference_table(found, against), description=f"Changes since {against}"
    )


def difference_table(found: Sequence[Change], against: str) -> str:
    """A Markdown table of changes; names from files are kept from meaning anything in it."""
    against = _safe(against)
    if not found:
        return f"No figure differs from {against}."
    told = "1 figure differs" if len(found) == 1 else f"{len(found)} figures differ"
    lines = [f"{told} from {against}.", "", "| | before | now | change |", "|---|---:|---:|---:|"]
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
    margins, by_class = (mapping(mined.get(name)) for name in ("margins", "by_class"))
    rows = []
    for label, told in by_class.items():
        counts = mapping(told)
        row = {"class": str(label), "kept": _number(counts.get("kept")), "margin": _number(margins.get(label))}
        figures = [counts.get(name) for name in ("precision", "low", "high")]
        if all(is_number(one) for one in figures):
            row["estimated precision"] = "{:.3f} [{:.3f}, {:.3f}]".format(*figures)
        rows.append(row)
    return rows


def _report(workspace: Path) -> None:
    if not (workspace / REPORT).is_file():
        return
    served = os.environ.get("PIPELINES_REPORT_URL")
    link = f"{served.rstrip('/')}/{REPORT.name}" if served else (workspace / REPORT).as_uri()
    create_link_artifact(link=link, link_text="The report", key="report", description=f"{workspace / REPORT}")


def _number(value: Any, *, sign: bool = False) -> str:
    if not is_number(value):
        return "-"
    whole, small = value == int(value), 0 < abs(value) < SMALL
    text = f"{value:,.0f}" if whole else f"{value:.1e}" if small else f"{value:.4f}"
    return f"+{text}" if sign and value > 0 else text


def _safe(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "|\\`*_[]<>&~$" else letter for letter in " ".join(text.split()))
