"""Show the folds of a protocol: what each holds before anything runs, and what all that are finished measured.

Folds are reproduced as DVC experiments, by `python -m pipelines sweep datasets.<set>.protocol.fold=1,2,… --resume`.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fer_pipeline.commands.results import format_table
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import refuse_link, replacing_folder, write_text
from fer_pipeline.core.folds import Fold, Protocol, Published
from fer_pipeline.core.settings import PARAMS, ProjectSettings, Summary, load_params, read_project, validate
from fer_pipeline.evaluation.statistics import Interval
from fer_pipeline.reporting.page import render
from fer_pipeline.reporting.results import Difference, list_pairs

if TYPE_CHECKING:  # it would bring git and DVC's cache to `divide`
    from fer_pipeline.inspection.folds import FoldTable

ABOUT = "together: of all tested faces as one set, each tested once; - where folds test the same ones"
RULE = (
    "intervals: over folds, with what they share taken into account; that of a row with p is corrected for the number "
    "of such rows, and claimed is what leaves out zero"
)


def divide(*, name: str | None = None, params: Path = PARAMS) -> str:
    """Print what each fold of a set tests and trains on: persons, and pictures by class.

    Args:
        name: The set; else every one that has a protocol.
        params: The file of settings.
    """
    from fer_pipeline.alignment import samples  # brings torch

    project = read_project(params)
    lines: list[str] = []
    for key, protocol in find_protocols(project, name).items():
        dataset = project.dataset(key)
        labels = samples.LabelMap(dataset, project.classes, name=key)
        whole = [] if isinstance(protocol, Published) else list(samples.read_undivided(dataset, name=key))
        persons_of = samples.read_divided(dataset, name=key)
        rows = [["fold", "persons", "tested", "trained on", "validation", *project.classes]]
        for fold in range(1, protocol.folds + 1):
            of_fold = protocol.model_copy(update={"fold": fold})
            one = dataset.model_copy(update={"protocol": of_fold})
            if isinstance(of_fold, Published):
                divided = samples.read_samples(one, project.classes, name=key)
            else:
                divided = samples.divide(whole, of_fold, labels, name=key, persons=persons_of)
            persons: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
            counts: Counter[tuple[str, int]] = Counter()
            for sample in divided:
                number = labels.look_up(sample.label)
                if isinstance(number, int) and sample.split in persons:
                    persons[sample.split].add(sample.subject or sample.id)
                    counts[sample.split, number] += 1
            tested = [counts["test", number] for number in range(len(project.classes))]
            trained, chosen = (sum(counts[split, k] for k in range(len(tested))) for split in ("train", "val"))
            both = persons["test"] & (persons["train"] | persons["val"])
            cells = [f"{fold}{'*' if fold == protocol.fold else ''}", f"{len(persons['test']):,}", f"{sum(tested):,}"]
            rows.append([*cells, f"{trained:,}", f"{chosen:,}", *(f"{count:,}" for count in tested)])
            if both:
                rows[-1][1] += f" ({len(both):,} trained on, too)"
        if all(row[4] == "0" for row in rows[1:]):  # a protocol of ours sets nothing apart
            rows = [row[:4] + row[5:] for row in rows]
        lines += [f"{key}: {_describe(protocol)}; what is tested, by fold and class (* as set now)"]
        lines += [*format_table(rows, num_names=1, rule=True), f"run them all: {_command(project, key, protocol)}", ""]
    return "\n".join(lines).rstrip()


def table(
    *,
    name: str | None = None,
    params: Path = PARAMS,
    format: Literal["table", "csv"] = "table",
    page: bool = False,
    out: Path = Path("reports/folds"),
) -> Summary:
    """Print mean and standard deviation over the finished folds of a set, and what may be claimed of recipes.

    Args:
        name: The set; without it, the only one with a protocol.
        params: The file of settings, of which the folds are.
        format: How the table is printed.
        page: Write it as a page beside the report as well, with published figures and the tables behind it.
        out: The folder of such pages, a folder for each set.
    """
    from fer_pipeline.inspection import folds
    from fer_pipeline.stages.evaluate import Config as EvaluateConfig
    from fer_pipeline.stages.report import Config as ReportConfig

    project, settings = read_project(params), load_params(params)
    protocols = find_protocols(project, name)
    if len(protocols) > 1:
        raise ConfigError(f"several sets have a protocol, {', '.join(protocols)}; say which by --name")
    key, protocol = next(iter(protocols.items()))
    recipes = validate(EvaluateConfig, settings.get("evaluate") or {}, where=f"{params}, evaluate").recipes
    report = validate(ReportConfig, settings.get("report") or {}, where=f"{params}, report")
    found = folds.join(Path.cwd(), settings, key, protocol, recipes, project.targets)
    if not found.results:
        raise DataError(f"no fold of {key} with these settings is finished; run: {_command(project, key, protocol)}")
    pairs = list_pairs(recipes, baseline=report.baseline, controls=report.controls, more=report.pairs)
    rows = [_row(found, *pair) for pair in found.results]
    differences = [_difference(row) for row in found.compare(pairs, bounds=report.bounds)]
    warnings = list(found.faults)
    if left := found.missing():
        numbers = ", ".join(map(str, left))
        warnings.append(
            f"{len(left)} of {protocol.folds} folds are missing ({numbers}): no figures of the whole protocol"
        )
    if len(bases := {one.base for one in found.finished.values()}) > 1:
        warnings.append(
            f"the folds were made from {len(bases)} commits, of perhaps other code: {', '.join(sorted(bases))}"
        )
    title = f"{key}: {_describe(protocol)}; mean and standard deviation over folds, of each fold's mean over seeds"
    if page:
        refuse_link(out / key)
        tables = {"results": rows, "differences": differences}
        context = {"title": title, "warnings": warnings, "tables": tables, "stated": report.published, "rule": RULE}
        with replacing_folder(out / key) as folder:
            for kind, content in tables.items():
                write_text(folder / f"{kind}.csv", _csv(content))
            write_text(folder / "index.html", render(context, "folds.html.j2"))
    if format == "csv":
        return Summary("", _csv(rows).rstrip(), warnings=tuple(warnings))
    lines = [title, *format_table([[*rows[0]], *([*row.values()] for row in rows)], num_names=2, rule=True), ABOUT]
    if differences:
        lines += ["", *format_table([[*differences[0]], *([*row.values()] for row in differences)], rule=True), RULE]
    lines += [f"page: {out / key / 'index.html'}"] * page
    return Summary("", "\n".join(lines), warnings=tuple(warnings))


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*rows[0]], *(row.values() for row in rows)] if rows else [])
    return text.getvalue()


def _row(found: "FoldTable", recipe: str, target: str) -> dict[str, str]:
    """Returns a row of the table by its columns."""
    results, together = found.results[recipe, target], found.together(recipe, target)
    accuracy, mean, spread = _with_deviation(found.over_folds(recipe, target))
    whole = ["-"] * 3 if together is None else [f"{value:.4f}" for value in together]
    seconds, memory = found.cost(recipe) or (None, None)
    return {
        **{"recipe": recipe, "target": target, "folds": f"{len(results)} of {found.protocol.folds}"},
        "faces": "-" if together is None else f"{sum(len(one.labels) for one in results.values()):,}",
        **{"accuracy": accuracy, "mean class accuracy": mean, "95 %": _span(found.interval(recipe, target))},
        **{"sd over classes": spread, "together": whole[0], "and by class": whole[1], "and its sd": whole[2]},
        "s/epoch": "-" if seconds is None else f"{seconds:.2f}",
        "MB": "-" if memory is None else f"{memory / 1e6:,.0f}",
    }


def _difference(row: Difference) -> dict[str, str]:
    """Returns a row of the differences by its columns; without p and claim where it does not decide."""
    decides = row.decision is not None and not row.contrast.unknown
    return {
        **{"recipe": row.recipe, "minus": row.against, "mean class accuracy": f"{row.interval.mean:+.4f}"},
        "interval": _span(row.interval, sign="+") if not row.contrast.unknown else f"none: {row.contrast.unknown}",
        "p": f"{row.decision.p_value:.4f}" if row.decision and decides else "-",
        "claim": row.decision.claim if row.decision and decides else "-",
    }


def find_protocols(project: ProjectSettings, name: str | None) -> Mapping[str, Protocol]:
    """Returns the protocols by set, or that of one set; ConfigError where there is none."""
    sets = [name] if name else [key for key in project.datasets if key not in project.pools]  # a pool has a set's own
    found = {key: protocol for key in sets if (protocol := project.dataset(key).protocol)}
    if not found:
        line = f"datasets.{name or 'SET'}.protocol: {{name: k_fold, folds: 10, fold: 1}}"
        raise ConfigError(f"{f'the set {name}' if name else 'no set'} has {'no' if name else 'a'} protocol; set {line}")
    return found


def _describe(protocol: Fold) -> str:
    settings = protocol.model_dump(exclude={"name", "fold"})
    kind = protocol.model_dump()["name"]
    return f"{kind} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _command(project: ProjectSettings, name: str, protocol: Fold) -> str:
    own, numbers = project.datasets[name], ",".join(map(str, range(1, protocol.folds + 1)))
    pools = [key for key in project.pools if key != name and project.datasets[key].shares_source(own)]
    paths = [f"datasets.{key}.protocol.fold" for key in [name, *pools] if project.datasets[key].protocol]
    return f"python -m pipelines sweep {'+'.join(paths)}={numbers} --resume"


def _span(interval: Interval, *, sign: str = "") -> str:
    return (
        f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}" if None not in (interval.low, interval.high) else "-"
    )


def _with_deviation(figures: np.ndarray) -> Sequence[str]:
    means = figures.mean(0)
    if len(figures) < 2:
        return [f"{mean:.4f}" for mean in means]
    return [f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(means, figures.std(0, ddof=1), strict=True)]
