"""Publish in the Prefect UI what a run brings: stages, figures, mined faces, changes, report.

Results are read from the files of `evaluate` and `mine`, differences to the baseline from those of `report`.
"""

import csv
import os
import sys
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.logging import get_run_logger

from pipelines import FlowError
from pipelines.documents import DocumentError, parse_json, read_json
from pipelines.repository import run_dvc
from pipelines.workspace import LOCK, UNSUCCESSFUL, Outcome, Stage, read_makers

METRICS = Path("reports/metrics")
MINED = Path("data/mined")  # of one seed for all, or a folder for each of those in SEEDS
SUMMARY, SEEDS = "summary.json", "seeds.json"
REPORT = Path("reports/index.html")
GALLERY = Path("reports/gallery/index.html")  # of `mined gallery`, which is no stage
MAIN_FIGURES = ("mean_class_accuracy", "accuracy", "macro_f1", "class_accuracy_sd")
DIFFERENCES = Path("reports/tables/differences.csv")
MINED_FACES = ("mined faces",)
SMALL = 0.00005  # what four decimals would show as nothing
REPORTS_KEPT = 50
LONGEST_LINE = 1_000_000  # characters; a longer one is no row of that table
DIFFERENCE_COLUMNS = ("difference", "low", "high")


@dataclass(frozen=True)
class Results:
    """`metrics`: figure by (recipe, target, name). `mined`: the summary that `mine` writes, or nothing.

    `withheld`: why the figures of (recipe, target), or of MINED_FACES, are of an older run and so in neither.
    """

    metrics: dict[tuple[str, str, str], float] = field(default_factory=dict)
    mined: dict[str, Any] = field(default_factory=dict)
    withheld: dict[tuple[str, ...], str] = field(default_factory=dict)

    def without(self, withheld: Container[tuple[str, ...]]) -> "Results":
        """Return the results less some of them, named as in `withheld`."""
        metrics = {key: value for key, value in self.metrics.items() if key[:2] not in withheld}
        return Results(metrics, {} if MINED_FACES in withheld else self.mined)

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


def read_results(workspace: Path, outcomes: Mapping[str, str] | None = None) -> Results:
    """Return the figures of `evaluate` and the summary of `mine` that lie in a workspace.

    With the `outcomes` of a run by stage, only those that the run brought up to date or found so.
    """
    makers, withheld = read_makers(workspace / LOCK), dict[tuple[str, ...], str]()

    def reason(path: Path) -> str | None:
        stage = next((makers[place] for one in (path, *path.parents) if (place := one.as_posix()) in makers), None)
        if outcomes is None:
            return None
        if stage is None:
            return "no stage in dvc.lock makes it"
        if stage not in outcomes:
            return f"{stage} is not part of this run"
        return f"{stage}: {outcomes[stage]}" if outcomes[stage] in UNSUCCESSFUL else None

    there = {path.relative_to(workspace) for path in (workspace / METRICS).glob("*/*.json")}
    known = {Path(path) for path in makers if Path(path).parent.parent == METRICS} if outcomes is not None else set()
    metrics = dict[tuple[str, str, str], float]()
    for path in sorted(there | known):
        recipe, target = path.parent.name, path.stem
        if why := reason(path):
            withheld[recipe, target] = why
        else:
            figures = _flatten(read_mapping(workspace / path))
            metrics |= {(recipe, target, name): value for name, value in figures.items()}
    summary = workspace / MINED / _first_seed(read_mapping(workspace / MINED / SEEDS)) / SUMMARY
    if summary.exists() and (why := reason(MINED)):
        withheld[MINED_FACES] = why
    return Results(metrics, {} if MINED_FACES in withheld else read_mapping(summary), withheld)


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

    def fetch(path: Path) -> dict[str, Any]:
        with suppress(FlowError), tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / path.name
            run_dvc(workspace, "get", ".", path.as_posix(), "--rev", rev, "--out", str(out))
            return read_mapping(out)
        return {}

    mined = fetch(MINED / SUMMARY)
    if not mined and (own := _first_seed(fetch(MINED / SEEDS))):
        mined = fetch(MINED / own / SUMMARY)
    return Results(metrics, mined) if metrics or mined else None


def _first_seed(seeds: Mapping[str, Any]) -> str:
    """Return the folder of the first seed in what `seeds.json` holds; "" where it names none."""
    listed = seeds.get("seeds")
    return str(listed[0]) if isinstance(listed, list) and listed and isinstance(listed[0], int) else ""


def compare_results(before: Results, after: Results) -> list[Change]:
    """Return all figures that differ, in order of name; none of those that are withheld."""
    old, new = before.without(after.withheld).flat(), after.flat()
    names = sorted(old.keys() | new.keys())
    return [Change(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def read_differences(workspace: Path, outcomes: Mapping[str, str]) -> dict[tuple[str, str], tuple[float, str]]:
    """Return by (recipe, target) the difference in the first main figure that the report of this run has, and a text.

    The text gives it in points with its interval over seeds and persons, and the recipe that it is against: the
    baseline, whose rows come before those of the controls.
    """
    maker = next((stage for path, stage in read_makers(workspace / LOCK).items() if path == "reports/tables"), None)
    if maker is None or outcomes.get(maker, Outcome.SKIPPED) in UNSUCCESSFUL:
        return {}
    found: dict[tuple[str, str], tuple[float, str]] = {}
    damage = (OSError, ValueError, TypeError, KeyError, csv.Error)
    with suppress(*damage), (workspace / DIFFERENCES).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(iter(partial(stream.readline, LONGEST_LINE), "")):
            if row.get("metric") == MAIN_FIGURES[0]:
                difference, low, high = (100 * float(row[name] or "nan") for name in DIFFERENCE_COLUMNS)
                text = f"{difference:+.1f} [{low:+.1f}, {high:+.1f}] against {row['against']}".replace(
                    " [+nan, +nan]", ""
                )
                found.setdefault((row["recipe"], row["target"]), (difference, text))
    return found


def publish_stages(stages: Mapping[str, Stage], outcomes: Mapping[str, str], changes: Sequence[str] = ()) -> None:
    """Publish how each stage of a run ended, also of one that was ended itself; a server that is away fails no run."""
    rows = [
        {"stage": address, "state": str(outcomes.get(address, "not ended")), "what it does": stage.description}
        for address, stage in stages.items()
    ]
    description = "The stages of this run, in the order of the graph"
    if changes:
        description += f". Changed settings: {_escape(', '.join(changes))}"
    with _warn_of_errors():
        create_table_artifact(key="stages", table=rows, description=description)


def publish_run(workspace: Path, outcomes: Mapping[str, str], run: UUID) -> None:
    """Publish the figures of a run, what changed with it and its report; a server that is away fails no run."""
    after: Results | None = None
    with _warn_of_errors():
        after = read_results(workspace, outcomes)
        publish_results(after, read_differences(workspace, outcomes))
    with _warn_of_errors():
        changed = any(outcome != Outcome.CACHED for outcome in outcomes.values())
        if changed and after is not None and (before := read_results_at(workspace, "HEAD")):
            publish_difference(compare_results(before, after), "the last commit", after.withheld)
    with _warn_of_errors():
        pages = {"report": _keep_report(workspace, run), "gallery": workspace / GALLERY}
        for key, page in pages.items():
            if page is not None and page.is_file():
                site = os.environ.get("PIPELINES_REPORT_URL")
                place = page.relative_to(workspace / REPORT.parent).as_posix()
                link = f"{site.rstrip('/')}/{place}" if site else page.as_uri()
                create_link_artifact(link=link, link_text=f"The {key}", key=key, description=f"`{page}`")


def _keep_report(workspace: Path, run: UUID) -> Path | None:
    """Copy the report to a place of this run's own, and remove the oldest of too many; None where there is none."""
    report, folder = workspace / REPORT, workspace / REPORT.parent / "runs"
    if not report.is_file():
        return None
    folder.mkdir(exist_ok=True)
    kept = folder / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-{str(run)[:8]}.html"
    kept.write_bytes(report.read_bytes().replace(b'href="gallery/', b'href="../gallery/'))
    others = {*folder.glob("*.html")} - {kept}  # one of the same second may have a later name
    for old in sorted(others)[: 1 - REPORTS_KEPT]:
        old.unlink(missing_ok=True)
    return kept


@contextmanager
def _warn_of_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not everything could be shown: %s", error)


def publish_results(results: Results, differences: Mapping[tuple[str, str], tuple[float, str]] | None = None) -> None:
    """Publish the table of figures, and of mined faces by class with margin and estimated precision.

    A figure that is not of this run is blank with the reason. Sorted by target, then by the difference, best first.
    """
    rows: dict[Any, dict[str, str]] = {}
    differences = differences or {}
    pairs = {key[:2] for key in results.metrics} | {key for key in results.withheld if len(key) == 2}
    for recipe, target in sorted(pairs, key=lambda pair: (pair[1], -differences.get(pair, (0.0, ""))[0], pair[0])):
        figures = {name: results.metrics.get((recipe, target, name)) for name in MAIN_FIGURES}
        texts = {name: f"{value:.4f}" for name, value in figures.items() if value is not None}
        rows[recipe, target] = {"recipe": recipe, "target": target, **texts}
        if (recipe, target) in differences:
            rows[recipe, target]["difference (points)"] = differences[recipe, target][1]
        if why := results.withheld.get((recipe, target)):
            rows[recipe, target]["not shown"] = why
    if rows:
        description = "Recipes on the test splits, mean over seeds"
        first = ("recipe", "target", "not shown", MAIN_FIGURES[0], "difference (points)")  # what a narrow page shows
        create_table_artifact(key="metrics", table=fill_rows(rows.values(), first), description=description)
    if why := results.withheld.get(MINED_FACES):
        create_table_artifact(key="mined", table=[{"not shown": why}], description="Mined faces")
    if not results.mined:
        return
    kept, margins, rows = results.mined.get("kept"), _mapping(results.mined.get("margins")), {}
    for label, counts in _mapping(results.mined.get("by_class")).items():
        counts = _mapping(counts)
        rows[label] = {"class": str(label), "kept": _format(counts.get("kept")), "margin": _format(margins.get(label))}
        precision = [counts.get(name) for name in ("precision", "low", "high")]
        if is_number(precision[0]):
            mean, low, high = (f"{value:.3f}" if is_number(value) else "?" for value in precision)
            rows[label]["estimated precision"] = f"{mean} [{low}, {high}]"
        elif reason := counts.get("reason"):
            rows[label]["estimated precision"] = f"not known: {reason}"
    description = "Mined faces" if kept is None else f"Mined faces: {_format(kept)} kept"
    create_table_artifact(key="mined", table=fill_rows(rows.values()), description=description)


def fill_rows(rows: Iterable[Mapping[str, str]], first: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return rows that all have every column that one has: Prefect's page shows those of the first row alone."""
    rows = list(rows)
    there = dict.fromkeys(name for row in rows for name in row)
    columns = [*(name for name in first if name in there), *(name for name in there if name not in first)]
    return [{name: row.get(name, "") for name in columns} for row in rows]


def publish_difference(
    changes: Sequence[Change], against: str, withheld: Mapping[tuple[str, ...], str] | None = None
) -> None:
    """Publish what changed in figures and mined counts, as a table; a sentence where nothing did."""
    text, description = format_difference(changes, against, withheld or {}), f"Changes since {against}"
    create_markdown_artifact(key="difference", markdown=text, description=description)


def format_difference(
    changes: Sequence[Change], against: str, withheld: Mapping[tuple[str, ...], str] | None = None
) -> str:
    """Return a Markdown table of changes; characters of names from files are escaped.

    What is `withheld` is named behind it with the reason.
    """
    against = _escape(against)
    missing = [f"- {_escape(' on '.join(what))}: {_escape(why)}" for what, why in (withheld or {}).items()]
    rest = ["", "Not compared:", "", *missing] if missing else []
    if not changes:
        return "\n".join([f"No figure differs from {against}.", *rest])
    count = "1 figure differs" if len(changes) == 1 else f"{len(changes)} figures differ"
    lines = [f"{count} from {against}.", "", "| | before | now | change |", "|---|---:|---:|---:|"]
    for change in changes:
        figures = _format(change.before), _format(change.after), _format(change.difference, sign=True)
        lines.append("| " + " | ".join([_escape(change.what), *figures]) + " |")
    return "\n".join([*lines, *rest])


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; an empty one where there is none or it cannot be read."""
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
