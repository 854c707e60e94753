"""Show the folds of a protocol: what each holds before anything runs, and what all that are finished measured.

Folds are reproduced as DVC experiments, by `python -m pipelines sweep datasets.<set>.protocol.fold=1,2,… --resume`.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fer_pipeline.commands.results import format_table
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.folds import Fold, Protocol, Published
from fer_pipeline.core.settings import PARAMS, ProjectSettings, Summary, load_params, read_project, validate

HEADER = ["recipe", "target", "folds", "faces", "accuracy", "mean class accuracy", "together", "and by class"]


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
        rows = [["fold", "persons", "tested", "trained on", *project.classes]]
        for fold in range(1, protocol.folds + 1):
            of_fold = protocol.model_copy(update={"fold": fold})
            one = dataset.model_copy(update={"protocol": of_fold})
            if isinstance(of_fold, Published):
                divided = samples.read_samples(one, project.classes, name=key)
            else:
                divided = samples.divide(whole, of_fold, labels, name=key)
            persons: dict[str, set[str]] = {"train": set(), "test": set()}
            counts: Counter[tuple[str, int]] = Counter()
            for sample in divided:
                number = labels.look_up(sample.label)
                if isinstance(number, int) and sample.split in persons:
                    persons[sample.split].add(sample.subject or sample.id)
                    counts[sample.split, number] += 1
            tested = [counts["test", number] for number in range(len(project.classes))]
            trained = sum(count for (split, _), count in counts.items() if split == "train")
            both = persons["test"] & persons["train"]
            cells = [f"{fold}{'*' if fold == protocol.fold else ''}", f"{len(persons['test']):,}", f"{sum(tested):,}"]
            rows.append([*cells, f"{trained:,}", *(f"{count:,}" for count in tested)])
            if both:
                rows[-1][1] += f" ({len(both):,} trained on, too)"
        lines += [f"{key}: {_describe(protocol)}; what is tested, by fold and class (* as set now)"]
        lines += [*format_table(rows, num_names=1, rule=True), f"run them all: {_command(key, protocol)}", ""]
    return "\n".join(lines).rstrip()


def table(*, name: str | None = None, params: Path = PARAMS, format: Literal["table", "csv"] = "table") -> Summary:
    """Print mean and standard deviation over the finished folds of a set, by recipe and target.

    Args:
        name: The set; without it, the only one with a protocol.
        params: The file of settings, of which the folds are.
        format: How it is printed.
    """
    from fer_pipeline.inspection import folds
    from fer_pipeline.stages.evaluate import Config as EvaluateConfig

    project, settings = read_project(params), load_params(params)
    protocols = find_protocols(project, name)
    if len(protocols) > 1:
        raise ConfigError(f"several sets have a protocol, {', '.join(protocols)}; say which by --name")
    key, protocol = next(iter(protocols.items()))
    recipes = validate(EvaluateConfig, settings.get("evaluate") or {}, where=f"{params}, evaluate").recipes
    found = folds.join(Path.cwd(), settings, key, protocol, recipes, project.targets)
    if not found.results:
        raise DataError(f"no fold of {key} with these settings is finished; run: {_command(key, protocol)}")
    rows = [HEADER]
    for (recipe, target), results in found.results.items():
        figures = found.over_folds(recipe, target)
        together = found.together(recipe, target)
        faces = f"{sum(len(one.labels) for one in results.values()):,}" if together is not None else "-"
        count = f"{len(results)} of {protocol.folds}"
        both = ["-", "-"] if together is None else [f"{value:.4f}" for value in together]
        rows.append([recipe, target, count, faces, *_with_deviation(figures), *both])
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
    if format == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return Summary("", text.getvalue().rstrip(), warnings=tuple(warnings))
    title = f"{key}: {_describe(protocol)}; mean and standard deviation over folds, of each fold's mean over seeds"
    about = "together: of all tested faces as one set, each tested once; - where folds test the same ones"
    return Summary("", "\n".join([title, *format_table(rows, num_names=2, rule=True), about]), warnings=tuple(warnings))


def find_protocols(project: ProjectSettings, name: str | None) -> Mapping[str, Protocol]:
    """Returns the protocols by set, or that of one set; ConfigError where there is none."""
    if name is not None:
        project.dataset(name)
    found = {key: one.protocol for key, one in project.datasets.items() if one.protocol and name in (None, key)}
    if not found:
        line = f"datasets.{name or 'SET'}.protocol: {{name: k_fold, folds: 10, fold: 1}}"
        raise ConfigError(f"{f'the set {name}' if name else 'no set'} has {'no' if name else 'a'} protocol; set {line}")
    return found


def _describe(protocol: Fold) -> str:
    settings = protocol.model_dump(exclude={"name", "fold"})
    kind = protocol.model_dump()["name"]
    return f"{kind} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _command(name: str, protocol: Fold) -> str:
    numbers = ",".join(map(str, range(1, protocol.folds + 1)))
    return f"python -m pipelines sweep datasets.{name}.protocol.fold={numbers} --resume"


def _with_deviation(figures: np.ndarray) -> Sequence[str]:
    means = figures.mean(0)
    if len(figures) < 2:
        return [f"{mean:.4f}" for mean in means]
    return [f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(means, figures.std(0, ddof=1), strict=True)]
