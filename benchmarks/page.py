"""`python -m benchmarks.page PROFILE`: writes the dated results of a finished run from what it measured.

In: `reports/tables` (results, differences, timings, precision), `data/distilled/**/controls.json` and the settings of
the project in `--root`. Out: `benchmarks/<profile>-<date>.md`: its machine and commit, a table of the recipes, one of
the differences with the claims, the steps of every recipe, the precision of what was mined by each rule, and what a
training on the distilled images alone reaches beside its controls. No figure is typed by hand.
"""

import csv
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks.harness.machine import machine, moment
from benchmarks.harness.process import ROOT
from fer_pipeline.artifacts.distilled import CONTROLS, Controls, read_controls
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import CALIBRATION
from fer_pipeline.commands.profile import PROFILES
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.files import read_lines, refuse_damage, write_text
from fer_pipeline.core.settings import PARAMS, ProjectSettings, read_project
from fer_pipeline.evaluation.statistics import Interval, mean_interval
from fer_pipeline.networks.settings import read_card
from fer_pipeline.reporting.formatting import NONE, points
from fer_pipeline.reporting.results import ALL, METRIC
from fer_pipeline.terminal import report_errors

Row = dict[str, str]


class Gains(NamedTuple):
    """What the distilled images of one set gain over one control, trained on alone: a value for each of its seeds."""

    name: str
    start: str
    against: str
    distilled: list[float]  # mean class accuracies
    control: list[float]
    low: list[float | None]  # of the gain, over persons and draws

    @property
    def values(self) -> list[float]:
        """The gains."""
        return [one - other for one, other in zip(self.distilled, self.control, strict=True)]


def main(
    profile: Annotated[str, typer.Argument(help="The profile that was run.")],
    root: Annotated[Path, typer.Option(help="The folder of the project that has run.")] = Path(),
    seconds: Annotated[float | None, typer.Option(help="How long the run took, on the clock.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write.")] = None,
) -> None:
    """Write the dated page of a run's results."""
    with report_errors():
        if (root / PARAMS).read_bytes() != (ROOT / PROFILES / f"{profile}.yaml").read_bytes():
            raise ConfigError(f"{root / PARAMS} is not the profile {profile}; name the one that was run")
        date = time.strftime("%Y-%m-%d", time.gmtime())
        out = out or ROOT / "benchmarks" / f"{profile}-{date}.md"
        write_text(out, "\n".join([*write_page(profile, date, root, seconds=seconds)]) + "\n")
        typer.echo(f"{out} is written")


def write_page(profile: str, date: str, root: Path, *, seconds: float | None = None) -> Iterator[str]:
    """Yield the lines of the page."""
    project, tables = read_project(root / PARAMS), root / "reports" / "tables"
    seeds = ", ".join(map(str, project.seeds))
    yield from (f"# {profile}, {date}", "")
    then = moment(root)
    commit = f"{then['commit']}{', with files changed since' if then['changed'] else ''}"
    yield f"`python -m fer_pipeline profile {profile}`, then `dvc repro`, at commit {commit}. Seeds {seeds}."
    here, took = machine(), f" It took {seconds / 60:.0f} minutes." if seconds else ""
    versions = f"Python {here['python']}, torch {torch.__version__}"
    yield f"Machine: {here['cores']} cores, {here['processor']}, {versions}.{took}"
    yield f"Chance is {1 / len(project.classes):.3f}."
    yield from ("", *_describe_results(tables, project), "", *_describe_differences(tables, project))
    yield from ("", *_describe_trainings(root, tables), "", *_describe_mining(tables, project))
    gains = list(read_gains(root / "data" / "distilled"))
    if gains:
        yield from ("", *_describe_gains(gains))


def _describe_results(tables: Path, project: ProjectSettings) -> Iterator[str]:
    rows = {(row["recipe"], row["target"]): row for row in read_rows(tables / "results.csv")}
    recipes, faces = (
        dict.fromkeys(recipe for recipe, _ in rows),
        {target: row["faces"] for (_, target), row in rows.items()},
    )
    yield "Mean class accuracy with its 95 % t interval over the seeds; test faces: " + (
        ", ".join(f"{target} {count}" for target, count in faces.items()) + "."
    )
    cells = [
        [
            recipe,
            *(_with_ends(rows.get((recipe, target), {}), METRIC, f"{METRIC}_seeds_") for target in project.targets),
        ]
        for recipe in recipes
    ]
    yield from ("", *format_rows(["recipe", *project.targets], cells))


def _describe_differences(tables: Path, project: ProjectSettings) -> Iterator[str]:
    pairs: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in read_rows(tables / "differences.csv"):
        if row["metric"] == METRIC:
            pairs[row["recipe"], row["against"]][row["target"]] = row
    places = [*project.targets, ALL] if len(project.targets) > 1 else [*project.targets]
    last = {pair: rows[places[-1]] for pair, rows in pairs.items() if places[-1] in rows}
    deciding = {pair: row for pair, row in last.items() if row["claim"]}  # all but those with a bound
    yield (
        "Differences in points, with intervals over seeds and persons; the last but two columns decide where there is "
        f"a p, corrected for {len(deciding)} comparisons (Holm):"
    )
    cells = [
        [
            f"{recipe} minus {against}",
            *(_gain(rows.get(place)) for place in places),
            *(last[recipe, against][key] or NONE for key in ("p_corrected", "seeds_for_a_point")),
        ]
        for (recipe, against), rows in pairs.items()
        if (recipe, against) in last
    ]
    names = [*project.targets, "all, corrected"] if len(project.targets) > 1 else [f"{places[0]}, corrected"]
    yield from ("", *format_rows(["recipes", *names, "p", "seeds needed to detect one point"], cells), "")
    claimed = [
        f"{recipe} {'above' if float(row['difference']) > 0 else 'below'} {against} ({_gain(row)})"
        for (recipe, against), row in deciding.items()
        if row["low"] and (float(row["low"]) > 0 or float(row["high"]) < 0)
    ]
    yield f"**Claimed: {'; '.join(claimed) or 'nothing'}.**"


def _describe_trainings(root: Path, tables: Path) -> Iterator[str]:
    yield "Steps of each training, seed by seed, and how often each labelled face was seen:"
    cells = [
        [
            row["recipe"],
            row["steps"].replace(" ", ", "),
            f"{float(row['labelled_seen']):.0f}",
            {"True": "yes", "False": "no"}.get(row["stopped_rising"], "fixed number"),
            f"{float(row['times_baseline']):.1f}" if row["times_baseline"] else NONE,
        ]
        for row in read_rows(tables / "timings.csv")
    ]
    names = ["recipe", "steps", "labelled seen", "validation stopped rising", "seconds an epoch, baseline's = 1"]
    yield from ("", *format_rows(names, cells))
    learners: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((root / "models" / "primitive").rglob("card.json")):
        learners["Calibration models" if path.parent.name == CALIBRATION else "Labellers"].append(path.parent)
    for kind, folders in learners.items():
        cards = [read_card(folder).training for folder in folders]
        chosen = [read_history(folder)[card["chosen_epoch"] - 1] for folder, card in zip(folders, cards, strict=True)]
        figures = [f"{row[f'validation_{METRIC}']:.3f}" for row in chosen if f"validation_{METRIC}" in row]
        faces, steps = cards[0]["images"]["labelled"], ", ".join(str(card["steps"]) for card in cards)
        validated = f", mean class accuracy on validation faces {', '.join(figures)}" if figures else ""
        yield from ("", f"{kind}, seed by seed: {faces} faces, {steps} steps{validated}.")


def _describe_mining(tables: Path, project: ProjectSettings) -> Iterator[str]:
    yield "Right labels among the faces of each kind, true and as estimated on held-out anchor faces:"
    cells = [
        [row["kind"], row["pool"], row["faces"], *(_with_ends(row, name, f"{name}_") for name in ("true", "estimated"))]
        for row in read_rows(tables / "precision.csv")
        if row["class"] == "*"
    ]
    yield from ("", *format_rows(["faces", "pool", "number", "true", "estimated"], cells))


def read_gains(folder: Path) -> Iterator[Gains]:
    """Yield the gains of every distilled set over each of its controls; folders below the set's are of its seeds."""
    for path in sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ():
        found = [read_controls(one.parent) for one in sorted(path.rglob(CONTROLS))]
        seeds = [controls for controls in found if not controls.reason]
        for start, against in dict.fromkeys((row.start, row.against) for one in seeds for row in one.differences):
            low = [_difference_low(one, start, against) for one in seeds]
            distilled, control = (
                [one.best(start, images).mean_class_accuracy.mean for one in seeds] for images in ("distilled", against)
            )
            yield Gains(path.name, start, against, distilled, control, low)


def _difference_low(controls: Controls, start: str, against: str) -> float | None:
    return next(row.low for row in controls.differences if (row.start, row.against) == (start, against))


def _describe_gains(gains: Sequence[Gains]) -> Iterator[str]:
    yield (
        "Trained on the distilled images alone and on their controls alone, each in its better way, judged by held-out "
        "training faces: mean class accuracy over the distillation seeds, and the gain in points with its 95 % t "
        "interval over them, then seed by seed (with the lower end of its interval over persons and draws):"
    )
    cells = []
    for one in gains:
        seeds = [f"{points(gain)} ({points(low)})" for gain, low in zip(one.values, one.low, strict=True)]
        means = (mean_interval(values).mean for values in (one.distilled, one.control))
        figures = [*(f"{mean:.3f}" for mean in means), _span(mean_interval(one.values)), ", ".join(seeds)]
        cells.append([one.name, one.start, one.against.replace("_", " "), *figures])
    names = ["set", "from", "against", "distilled", "control", "gain", "gains of the seeds"]
    yield from ("", *format_rows(names, cells))


def read_rows(path: Path) -> list[Row]:
    """Read one table of the report; a DataError where it is missing or damaged."""
    with (
        refuse_damage(
            path, "is no table of results", "run: dvc repro report", missing="run: dvc repro", kind=csv.Error
        ),
        path.open(encoding="utf-8", newline="") as stream,
    ):
        return list(csv.DictReader(read_lines(stream.readline, path)))


def format_rows(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def _with_ends(row: Mapping[str, str], name: str, ends: str) -> str:
    """`0.848 [0.843, 0.854]`, or a dash where the figure is missing."""
    if not row.get(name):
        return NONE
    low, high = row[f"{ends}low"], row[f"{ends}high"]
    return f"{float(row[name]):.3f}" + (f" [{float(low):.3f}, {float(high):.3f}]" if low and high else "")


def _gain(row: Row | None) -> str:
    if row is None:
        return NONE
    low, high = (float(row[end]) if row[end] else None for end in ("low", "high"))
    return _span(Interval(float(row["difference"]), low, high, 0))


def _span(interval: Interval) -> str:
    """`+2.3 [-4.4, +9.0]` in points, with a true minus sign."""
    if interval.low is None or interval.high is None:
        return points(interval.mean)
    return f"{points(interval.mean)} [{points(interval.low)}, {points(interval.high)}]"


if __name__ == "__main__":
    typer.run(main)
