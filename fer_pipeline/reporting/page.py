"""Render the report's page: one HTML file with styles and pictures inside it, no script, nothing from outside."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fer_pipeline.artifacts.mined import ALL_CLASSES
from fer_pipeline.core.settings import ProjectSettings
from fer_pipeline.reporting import formatting
from fer_pipeline.reporting.charts import Figure, choose_looks
from fer_pipeline.reporting.claims import make_claims, place_forest, write_headline
from fer_pipeline.reporting.formatting import listing, percent, plural
from fer_pipeline.reporting.mining import draw_mining
from fer_pipeline.reporting.report_data import ReportData, Selection
from fer_pipeline.reporting.results import ALL, METRIC, Result, shade_confusion
from fer_pipeline.reporting.trainings import draw_trainings, find_loss

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("percent", "points", "plus_minus", "span", "count", "plural", "listing", "visible", "data_uri")
FEW = 20  # test faces of a class below which the page says what one face weighs


def render(context: dict[str, Any]) -> str:
    """Render the page. Jinja escapes every value; the style sheet alone is trusted."""
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters.update({name: getattr(formatting, name) for name in FILTERS})
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template("index.html.j2").render(style=style, **context)


def build_context(data: ReportData, project: ProjectSettings, selection: Selection, *, title: str) -> dict[str, Any]:
    """Build everything that the templates name; `figures` are all charts of the page."""
    baseline, controls, recipes = selection.baseline, selection.controls, list(project.recipes)
    looks = choose_looks(recipes, baseline=baseline, controls=controls)
    means = [row for row in data.differences if row.metric == METRIC]
    claims = make_claims(recipes, means, baseline=baseline, controls=controls, descriptions=selection.descriptions)
    by_target = {
        target: rows
        for target in project.targets
        if (rows := [result for (_, name), result in data.results.items() if name == target])
    }
    loss = find_loss(data.histories)
    charts = draw_mining(data.mined, data.precisions, data.sweep) if data.mined else {}
    for distilled in data.distilled:
        charts |= distilled.charts
    charts |= draw_trainings(data.timings, data.histories, looks, loss)
    figures = [Figure(name, svg) for name, svg in charts.items() if svg]
    confusions = {key: shade_confusion(result) for key, result in data.results.items()}
    context = vars(data) | {"title": title, "project": project, "looks": looks, "claims": claims, "baseline": baseline}
    context |= {"all_targets": ALL, "all_classes": ALL_CLASSES, "by_target": by_target, "confusions": confusions}
    context |= {"loss": loss, "charts": dict(figures), "figures": figures, "draws": selection.resampling.draws}
    return context | {
        "headline": write_headline(claims, baseline=baseline),
        "forest": place_forest([row for row in means if row.against == baseline], looks),
        "levels": _levels(data, baseline),
        "warnings": _warnings(data, project, baseline, by_target),
        "num_seeds": max(len(result.seeds) for result in data.results.values()),
        "resampled": _describe_resampling(by_target, by_subject=selection.resampling.by_subject),
        "best": {target: max(rows, key=_level).recipe for target, rows in by_target.items()},
    }


def _level(result: Result) -> float:
    return result.over_seeds[METRIC].mean


def _levels(data: ReportData, baseline: str) -> dict[str, float]:
    """The baseline's own mean class accuracy on every target, and their mean."""
    levels = {target: _level(row) for (name, target), row in data.results.items() if name == baseline}
    return {ALL: math.fsum(levels.values()) / len(levels), **levels} if levels else {}


def _describe_resampling(by_target: dict[str, list[Result]], *, by_subject: bool) -> str:
    persons = [target for target, rows in by_target.items() if by_subject and any(rows[0].predictions.subjects)]
    faces = [target for target in by_target if target not in persons]
    if not faces:
        return "whole persons are drawn"
    if not persons:
        return "faces are drawn within each true class"
    return f"whole persons are drawn on {listing(persons)}, faces within each true class on {listing(faces)}"


def _warnings(
    data: ReportData, project: ProjectSettings, baseline: str, by_target: dict[str, list[Result]]
) -> list[str]:
    every = [(recipe, target) for recipe in project.recipes for target in project.targets]
    missing = [f"{recipe} on {target}" for recipe, target in every if (recipe, target) not in data.results]
    warnings = [f"Not evaluated, so not in here: {listing(missing)}."] if missing else []
    if baseline not in project.recipes:
        choices = listing(list(project.recipes))
        warnings.append(f"There is no recipe “{baseline}” to compare with; set report.baseline to one of {choices}.")
    short = sorted({result.recipe for result in data.results.values() if len(result.seeds) < len(project.seeds)})
    if short:
        warnings.append(f"Evaluated with fewer than {plural(len(project.seeds), 'seed')}: {listing(short)}.")
    for target, rows in by_target.items():  # where a single test face weighs much
        supports = {name: number for name, number in rows[0].first.supports.items() if number}
        if few := [f"{name} {number}" for name, number in supports.items() if number < FEW]:
            weight = percent(1 / (min(supports.values()) * len(supports)))
            effect = f"one face can move its mean class accuracy by {weight} points"
            warnings.append(f"{target} has few test faces of {listing(few)}: {effect}.")
    return warnings
