"""Read and draw what trainings and distillations cost and how they went (figures 4, 5 and 7 of arXiv:2005.08551).

An epoch is once through all images that the recipe uses, so a recipe with ten times the images has ten times the steps
of an epoch. All recipes take the same number of steps in all, or train until their own validation has stopped rising
(`describe_length`). The clock is the one thing here that no seed fixes; it stands apart
from the results and decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fer_pipeline.artifacts.distilled import (
    CARD,
    Controls,
    DistilledCard,
    read_controls,
    read_distilled_card,
    read_probe,
)
from fer_pipeline.artifacts.history import FIGURES, HISTORY, read_history, read_timings
from fer_pipeline.artifacts.seed_folders import of_seed, seeds_in
from fer_pipeline.core.files import read_png, refuse_damage
from fer_pipeline.evaluation.statistics import Interval, mean_interval
from fer_pipeline.reporting.charts import BLUE, GREY, VERMILION, Charts, Line, Look, bars, lines
from fer_pipeline.reporting.formatting import TIMES, data_uri, listing, percent, plural

History = list[dict[str, float]]
Histories = Mapping[str, Sequence[History]]  # by recipe, one a seed
FEW = 5  # curves that leave room for a legend among them
RISING = 0.002  # mean gain of the last quarter of the validations from which on they count as rising
PROBES = {"saved_image": ("saved images left out", BLUE), "unseen_image": ("whole images left out", VERMILION)}


class Timing(NamedTuple):
    """Seconds per epoch of a recipe over its seeds, and what an epoch is there."""

    recipe: str
    seconds: Interval
    seconds_per_step: float
    steps_per_epoch: float
    steps: tuple[int, ...]  # of every seed
    labelled_seen: float  # times, each labelled face in the mean
    stopped_rising: bool | None  # in every seed; None where the number of steps was fixed
    times_baseline: float | None
    peak_memory: int | None = None  # in bytes, the most of a seed

    @property
    def steps_text(self) -> str:
        """The steps of all seeds, once where they are equal."""
        return ", ".join(f"{steps:,}" for steps in (self.steps if len(set(self.steps)) > 1 else self.steps[:1]))


def load_timings(folder: Path, recipes: Sequence[str], *, baseline: str) -> list[Timing]:
    """Load the timings there are, in the order of the recipes."""
    timings = []
    rows = {name: read_timings(path) for name in recipes if (path := folder / f"{name}.json").exists()}
    seconds = {
        name: mean_interval([row.figures["seconds_per_epoch"] for row in rows[name]]) for name in rows if rows[name]
    }
    base = seconds[baseline].mean if baseline in seconds else 0
    for name, interval in seconds.items():
        step, per_epoch = (sum(row.figures[key] for row in rows[name]) / len(rows[name]) for key in FIGURES[1:3])
        steps = tuple(round(row.figures["steps"]) for row in rows[name])
        ends = [row.stopped_rising for row in rows[name]]
        done = None if None in ends else all(ends)
        seen = float(np.mean([row.labelled_seen for row in rows[name]]))
        times = interval.mean / base if base > 0 else None
        peak = max((row.peak_memory for row in rows[name] if row.peak_memory is not None), default=None)
        timings.append(Timing(name, interval, step, per_epoch, steps, seen, done, times, peak))
    return timings


def describe_length(timings: Sequence[Timing], histories: Histories) -> str:
    """Say by what rule the recipes were trained as long as they were, and which of them may not be finished."""
    if not timings:
        return "How long the recipes were trained was not recorded"
    solved = [row.recipe for row in timings if set(row.steps) == {1}]  # nobody trains for one step
    timings = [row for row in timings if row.recipe not in solved]
    lead = ""
    if solved:
        verb = "was" if len(solved) == 1 else "were"
        lead = f"{listing(solved)} {verb} solved for at once, alike for all seeds with the same data"
    if not timings:
        return lead
    lead += "; " if solved else ""
    every = sorted({steps for row in timings for steps in row.steps})
    number = f"{every[0]:,}" if len(every) == 1 else f"{every[0]:,} to {every[-1]:,}"
    fixed = [row.recipe for row in timings if row.stopped_rising is None]
    if not fixed:
        short = [row.recipe for row in timings if not row.stopped_rising]
        left = f", but for {listing(short)}, which at_most ended while it was rising" if short else ""
        which = "every other recipe" if solved else "Every recipe"
        return f"{lead}{which} was trained until its own validation had stopped rising{left} ({number} steps)"
    which = ("the others" if solved else "Recipes") if len(fixed) == len(timings) else listing(fixed)
    said = f"{lead}{which} were trained for a fixed number of steps ({number}), not until their validation had stopped"
    said += " rising"
    rising = {name: _is_rising(histories.get(name, ())) for name in fixed}
    if None in rising.values():
        return f"{said}; they had no validation part, so whether it was still rising is not known"
    names = [name for name, still in rising.items() if still]
    return f"{said}; at the end it was {f'still rising for {listing(names)}' if names else 'not rising any more'}"


def _is_rising(runs: Sequence[History]) -> bool | None:
    """Whether the last quarter of the validations is better than the one before; None where they are too few."""
    column = "validation_mean_class_accuracy"
    values = [[row[column] for row in run] for run in runs if run and column in run[0]]
    quarter = min(map(len, values), default=0) // 4
    if not quarter:
        return None
    gains = [np.mean(run[-quarter:]) - np.mean(run[-2 * quarter : -quarter]) for run in values]
    return bool(np.mean(gains) > RISING)


def load_histories(models: Path, recipes: Sequence[str], seeds: Sequence[int]) -> dict[str, list[History]]:
    """Load the histories of every recipe that was trained, one for each seed."""
    folders = {recipe: [models / recipe / str(seed) for seed in seeds] for recipe in recipes}
    runs = {name: [read_history(one) for one in group if (one / HISTORY).exists()] for name, group in folders.items()}
    return {name: histories for name, histories in runs.items() if histories}


def draw_trainings(timings: Sequence[Timing], histories: Histories, looks: Mapping[str, Look], loss: str) -> Charts:
    """Draw seconds per epoch, the validation figure and the training loss `loss` by recipe."""
    rows = []
    for timing in timings:
        ratio = "" if timing.times_baseline is None else f" ({timing.times_baseline:.1f}{TIMES})"
        text = f"{timing.seconds.mean:.2f} s{ratio}"
        rows.append((timing.recipe, timing.seconds.mean, looks[timing.recipe].colour, text))
    validation, losses = (_curves(histories, name, looks) for name in ("validation_mean_class_accuracy", loss))
    return {
        "seconds_per_epoch": bars(rows, xlabel="seconds per epoch"),
        "validation": lines(
            validation, xlabel="steps", ylabel="mean class accuracy", percent=True, legend_above=len(validation) > FEW
        ),
        "training_loss": lines(
            losses, xlabel="steps", ylabel="cross-entropy of labelled faces", legend_above=len(losses) > FEW
        ),
    }


def find_loss(histories: Histories) -> str:
    """Return the column of the loss on the labelled faces: by its name, else the first one that every run has.

    What strategies add to it differs, so that their sums say nothing beside each other.
    """
    runs = [run[0] if run else {} for group in histories.values() for run in group]
    if any("train_labelled" in run for run in runs):
        return "train_labelled"
    names = [name for name in runs[0] if name.startswith("train_")] if runs else []
    return next((name for name in names if all(name in run for run in runs)), "")


def _curves(histories: Histories, column: str, looks: Mapping[str, Look]) -> list[Line]:
    """One curve a recipe over the steps, the mean over those of its seeds that have the column."""
    curves = []
    for recipe, runs in histories.items():
        runs = [run for run in runs if run and column in run[0] and "steps" in run[0]]
        if runs:
            shortest = min(map(len, runs))
            mean = np.mean([[row[column] for row in run[:shortest]] for run in runs], axis=0).tolist()
            steps = [row["steps"] for row in runs[0][:shortest]]
            curves.append(Line(recipe, steps, mean, looks[recipe].colour, marker=looks[recipe].marker))
    return curves


class DistilledSet(NamedTuple):
    """One distilled set, ready for the page; where the probe cannot be drawn, `probe_note` says why."""

    name: str
    verdict: str  # whether the images beat their controls, in one sentence
    previews: dict[str, str]  # class -> data URI
    summary: str
    probe_note: str
    charts: Charts
    probe_rows: list[dict[str, object]]
    control_rows: list[dict[str, object]]
    seed: int | None = None  # where each has a set of its own
    is_shown: bool = True  # of several seeds, the first in pictures


def load_distilled_sets(folder: Path, seed: int) -> list[DistilledSet]:
    """Load what is called by the folder's name: one set, or one for each seed, with the pictures of `seed` first."""
    if seeds := seeds_in(folder):
        own = of_seed(folder, seed)
        order = [own, *(folder / str(other) for other in seeds if other != seed)]
        sets = [(load_distilled_set(one, folder.name, row=f"{folder.name}/{one.name}"), one) for one in order]
        return [made._replace(seed=int(one.name), is_shown=one == own) for made, one in sets]
    return [load_distilled_set(folder, folder.name, row=folder.name)] if (folder / CARD).exists() else []


def load_distilled_set(folder: Path, name: str, *, row: str) -> DistilledSet:
    """Load one distilled set with its probe, where one was run; `row` is its name in the tables."""
    card, probe = read_distilled_card(folder), read_probe(folder)
    previews = {label: folder / "previews" / f"{label}.png" for label in card.classes}
    history = read_history(folder) if (folder / HISTORY).exists() else []
    curves = {kind: [[dict(row) for row in curve] for curve in getattr(probe, kind)] for kind in PROBES}
    summary, note, runs = _summarise(card, history), probe.reason or "no probe was run", curves["saved_image"]
    if runs and not probe.reason:
        mean, chance = float(np.mean([curve[-1]["test"] for curve in runs])), percent(probe.chance)
        note = f"{percent(mean)} % at the end, mean of {plural(len(runs), 'run')}; chance is {chance} %"
    probe_chart, history_chart = _probe_chart(curves, probe.chance), _history_chart(history)
    charts = {f"probe_{name}": probe_chart, f"distillation_{name}": history_chart}
    rows = [
        {"distilled": row, "left_out": kind, "run": run, **epoch}
        for kind, runs in curves.items()
        for run, curve in enumerate(runs)
        for epoch in curve
    ]
    with refuse_damage(folder / "previews", "is damaged", "remove its folder and run: dvc repro distill"):
        pictures = {label: data_uri(read_png(path)) for label, path in previews.items() if path.exists()}
    controls = read_controls(folder)
    control_rows = _control_rows(row, controls)
    return DistilledSet(name, _verdict(controls), pictures, summary, note, charts, rows, control_rows)


def _verdict(controls: Controls) -> str:
    """Says first of the start that the images are for, then of fresh weights."""
    if controls.reason:
        return f"Whether these images teach anything is not known: {controls.reason}."
    starts = dict.fromkeys((controls.start, "fresh"))
    text = ". ".join(f"T{controls.sentence(start)[1:]}" for start in starts)
    lead = "These images do not beat their controls. " if controls.unbeaten(controls.start) else ""
    return f"{lead}{text}."


def _control_rows(name: str, controls: Controls) -> list[dict[str, object]]:
    """One row for each kind of images, start and way of training."""
    return [
        {
            "distilled": name,
            **row.model_dump(exclude={"mean_class_accuracy"}),
            **{f"mean_class_accuracy_{key}": value for key, value in row.mean_class_accuracy.model_dump().items()},
        }
        for row in controls.trainings
    ]


def _summarise(card: DistilledCard, history: History) -> str:
    images = card.steps * card.images_per_step
    text = f"{plural(images, 'image')} in {plural(card.steps, 'step')}, {card.height} {TIMES} {card.width} px"
    if card.source_images is not None:
        text += f", distilled from {plural(card.source_images, 'real face')}"
    if card.epochs_run is not None and card.best_epoch is not None:
        text += f"; those of epoch {card.best_epoch} of {card.epochs_run}, stopped {card.stopped}"
    if history and {"loss", "loss_before"} <= set(history[0]):
        last = history[min(card.best_epoch or len(history), len(history)) - 1]
        text += f"; its loss goes from {last['loss_before']:.3f} to {last['loss']:.3f}"
    return text


def _probe_chart(curves: Mapping[str, list[History]], chance: float | None) -> bytes | None:
    series = []
    for kind, (label, colour) in PROBES.items():
        if runs := curves[kind]:
            epochs = [row["epoch"] for row in runs[0]]
            values = np.array([[row["test"] for row in curve] for curve in runs])
            series.append(Line(label, epochs, values.mean(0).tolist(), colour))
            series += [Line(label, epochs, row.tolist(), colour, faint=True) for row in values if len(values) > 1]
    level, ylabel = None if chance is None else (chance, "chance"), "accuracy on left-out images"
    return lines(series, xlabel="epoch of the probe", ylabel=ylabel, percent=True, level=level, height=2.7)


def _history_chart(history: History) -> bytes | None:
    if not history or not {"epoch", "loss"} <= set(history[0]):
        return None
    # The weights' distance of trajectory matching is of another kind than the loss on held-out faces.
    alike = "heldout_accuracy" not in history[0] or "accuracy" in history[0]
    looks = {
        "loss_before": ("before", GREY, "--"),
        "loss": ("after", VERMILION, "-"),
        "heldout_loss": ("held out", BLUE, "-"),
    }
    series = []
    for name, (label, colour, style) in looks.items():
        rows = [row for row in history if not math.isnan(row.get(name, math.nan))]
        if rows and (alike or name != "heldout_loss"):
            series.append(Line(label, [row["epoch"] for row in rows], [row[name] for row in rows], colour, style))
    return lines(series, xlabel="outer epoch", ylabel="loss of the method", height=2.5)
