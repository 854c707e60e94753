"""Evidence in, what the page's template needs out: the answer's words, the rows in reading order, the figures."""

import math
from typing import Any

from fer_pipeline.artifacts.mined import ALL_CLASSES
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.reporting import histories, mined, precision, sweep, timings
from fer_pipeline.reporting.answer import claims, headline
from fer_pipeline.reporting.charts import Figure, figure
from fer_pipeline.reporting.confusions import confusion
from fer_pipeline.reporting.evidence import METRIC, Evidence
from fer_pipeline.reporting.forest import forest
from fer_pipeline.reporting.numbers import NONE, count, listing, percent, plural
from fer_pipeline.reporting.palette import looks
from fer_pipeline.reporting.results import ALL, Resampling, Result

FEW = 20  # test faces of a class below which the page says what one face weighs
CONTENTS = (
    ("results", "Results"),
    ("differences", "Differences"),
    ("confusions", "Confusion"),
    ("mined", "Mined"),
    ("distilled", "Distilled"),
    ("cost", "Cost"),
    ("failures", "Failures"),
    ("data", "Data"),
    ("lineage", "Lineage"),
    ("reading", "How to read this"),
)


def contents(
    evidence: Evidence, world: ProjectSettings, resampling: Resampling, *, title: str, baseline: str
) -> dict[str, Any]:
    """Everything the template names."""
    appearance = looks(world)
    comparisons = evidence.of_metric(METRIC)
    found = claims(world, comparisons, baseline=baseline)
    by_target = {
        target: rows
        for target in world.targets
        if (rows := [result for (_, name), result in evidence.results.items() if name == target])
    }
    subjects = [any(rows[0].predictions.subjects) and resampling.by_subject for rows in by_target.values()]
    return {
        "title": title,
        "world": world,
        "looks": appearance,
        "headline": headline(found, baseline=baseline),
        "contents": [entry for entry in CONTENTS if entry[0] != "differences" or evidence.comparisons],
        "claims": found,
        "baseline": baseline,
        "forest": forest([row for row in comparisons if row.against == baseline], appearance),
        "levels": _levels(evidence, baseline),
        "warnings": _warnings(evidence, world, baseline),
        "num_seeds": max(len(result.seeds) for result in evidence.results.values()),
        "resampled": _resampled(list(by_target), subjects),
        "draws": resampling.draws,
        "by_target": by_target,
        "best": {target: max(rows, key=_mean_class_accuracy).recipe for target, rows in by_target.items()},
        "comparisons": evidence.comparisons,
        "recall": {key: _recall(result) for key, result in evidence.results.items()},
        "confusions": {target: [confusion(row) for row in rows] for target, rows in by_target.items()},
        **_mining(evidence, world),
        "distilled": evidence.distilled,
        "distilled_figures": {one.name: _distilled_figures(one) for one in evidence.distilled},
        **_cost(evidence, world),
        "galleries": evidence.galleries,
        "census": evidence.census,
        "rejected": any(one.rejected for one in evidence.census),
        "lineage": evidence.lineage,
    }


def figures_of(found: dict[str, Any]) -> list[Figure]:
    """All charts of the page."""
    distilled = [one for group in found["distilled_figures"].values() for one in group]
    return [*found["mined_figures"], *distilled, *found["cost_figures"]]


def _mining(evidence: Evidence, world: ProjectSettings) -> dict[str, Any]:
    found = evidence.mined
    if found is None:
        return {"mined": None, "mined_figures": []}
    summary = found.summary
    margins = {value for value in summary["margins"].values() if value is not None}
    used = margins.pop() if len(margins) == 1 else None
    charts = figure(
        "mined_counts",
        mined.counts_chart(summary),
        alt="Mined faces by class and pool; the numbers are in the table of pools below",
        caption="Mined faces by class" + (" and pool" if len(summary["pools"]) > 1 else "") + ".",
    )
    charts += figure(
        "precision",
        precision.chart(evidence.precisions),
        alt="Estimated and true precision of mined and random faces by pool; the numbers are in the table below",
        caption="Right pseudo-labels by pool, with 95\N{NO-BREAK SPACE}% intervals.",
    )
    if evidence.sweep is not None:
        shown = "" if used is not None else " Every class has a margin of its own, so none is drawn."
        charts += figure(
            "sweep_kept",
            sweep.kept_chart(evidence.sweep, used=used),
            alt="Faces kept over the margin, falling; the numbers are in sweep.csv",
            caption=f"Margin sweep: how many faces each margin keeps, before any cap.{shown}",
        )
        charts += figure(
            "sweep_precision",
            sweep.precision_chart(evidence.sweep, used=used),
            alt="Estimated and true precision over the margin; the numbers are in sweep.csv",
            caption="Margin sweep: precision estimated on held-out anchor faces, with its 95\N{NO-BREAK SPACE}% band"
            + (", and true precision where the truth is known." if evidence.sweep.true else "."),
        )
    return {
        "mined": found,
        "mined_figures": charts,
        "pool_faces": sum(pool["faces"] for pool in summary["pools"].values()),
        "empty_classes": [name for name, row in summary["by_class"].items() if not row["kept"]],
        "has_truth": bool(evidence.truth.pools),
        "precisions": evidence.precisions,
        "all_classes": ALL_CLASSES,
        "truth_unknown": sum(row.unknown for row in evidence.precisions if row.name == ALL_CLASSES),
    }


def _distilled_figures(one: Any) -> list[Figure]:
    return figure(
        f"probe_{one.name}",
        one.probe_chart,
        alt=f"Accuracy of the probe over its epochs: {one.probe_note}",
        caption=f"The probe (figure 7): a small network learns the classes of saved images and is tested on left-out "
        f"ones; {one.probe_note}. Moments of one image resemble each other, so this is weak evidence.",
    ) + figure(
        f"distillation_{one.name}",
        one.history_chart,
        alt=f"Loss on real faces before and after the distilled steps: {one.summary}",
        caption="The distillation: loss on real faces before and after the steps on distilled images.",
    )


def _cost(evidence: Evidence, world: ProjectSettings) -> dict[str, Any]:
    appearance = looks(world)
    charts = []
    if evidence.timings:
        charts += figure(
            "seconds_per_epoch",
            timings.chart(evidence.timings, appearance),
            alt="Seconds per epoch by recipe; the numbers are in the table above",
            caption="Seconds per epoch (figure 5), mean over the seeds; in brackets, times the baseline's.",
        )
    charts += figure(
        "validation",
        histories.chart(
            evidence.histories,
            "validation_mean_class_accuracy",
            looks=appearance,
            ylabel="mean class accuracy",
            percent=True,
        ),
        alt="Mean class accuracy on the validation part of the training data over the steps, by recipe",
        caption="Validation part of the training data (never a test set), mean over the seeds.",
    )
    column = histories.training_loss(evidence.histories)
    charts += figure(
        "training_loss",
        histories.chart(evidence.histories, column, looks=appearance, ylabel="training loss", percent=False),
        alt="Training loss over the steps, by recipe",
        caption=f"Training loss (<{column}>), mean over the seeds.".replace("<", "“").replace(">", "”"),
    )
    rows = [
        {
            "recipe": row.recipe,
            "words": [
                f"{row.seconds.mean:.2f}",
                NONE if row.times_baseline is None else f"{row.times_baseline:.2f}",
                count(row.steps_per_epoch),
                f"{1000 * row.seconds_per_step:.1f}",
                count(row.steps),
            ],
        }
        for row in evidence.timings
    ]
    columns = ["Seconds per epoch", "Times the baseline", "Steps per epoch", "Milliseconds per step", "Steps in all"]
    return {"timings": rows, "timing_columns": columns, "cost_figures": charts}


def _levels(evidence: Evidence, baseline: str) -> dict[str, float]:
    """The baseline's own mean class accuracy on every target, and their mean."""
    found = {target: _mean_class_accuracy(row) for (name, target), row in evidence.results.items() if name == baseline}
    return {ALL: math.fsum(found.values()) / len(found), **found} if found else {}


def _recall(result: Result) -> dict[str, float]:
    names = result.first.class_accuracies
    return {
        name: math.fsum(found.class_accuracies[name] for found in result.seeds.values()) / len(result.seeds)
        for name in names
    }


def _mean_class_accuracy(result: Result) -> float:
    return result.over_seeds[METRIC].mean


def _resampled(targets: list[str], by_subject: list[bool]) -> str:
    persons = [name for name, flag in zip(targets, by_subject, strict=True) if flag]
    faces = [name for name, flag in zip(targets, by_subject, strict=True) if not flag]
    if not faces:
        return "whole persons are drawn"
    if not persons:
        return "faces are drawn within each true class"
    return f"whole persons are drawn on {listing(persons)}, faces within each true class on {listing(faces)}"


def _warnings(evidence: Evidence, world: ProjectSettings, baseline: str) -> list[str]:
    every = [(recipe, target) for recipe in world.recipes for target in world.targets]
    missing = [f"{recipe} on {target}" for recipe, target in every if (recipe, target) not in evidence.results]
    said = [f"Not evaluated, so not in here: {listing(missing)}."] if missing else []
    if baseline not in world.recipes:
        choices = listing(list(world.recipes))
        said.append(f"There is no recipe “{baseline}” to compare with; set report.baseline to one of {choices}.")
    short = sorted({result.recipe for result in evidence.results.values() if len(result.seeds) < len(world.seeds)})
    if short:
        said.append(f"Evaluated with fewer than {plural(len(world.seeds), 'seed')}: {listing(short)}.")
    return said + _doubts(evidence)


def _doubts(evidence: Evidence) -> list[str]:
    """Targets on which a single test face weighs much."""
    said, told = [], set()
    for (_, target), result in evidence.results.items():
        supports = {name: number for name, number in result.first.supports.items() if number}
        few = [f"{name} {number}" for name, number in supports.items() if number < FEW]
        if few and target not in told:
            told.add(target)
            worth = percent(1 / (min(supports.values()) * len(supports)))
            said.append(
                f"{target} has few test faces of {listing(few)}: "
                f"one face can move its mean class accuracy by {worth} points."
            )
    return said
