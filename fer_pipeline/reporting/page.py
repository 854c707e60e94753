"""Collect what the report shows from the project's folder, and render one HTML file that needs nothing from outside.

The page holds its styles and pictures and no script. A part that this run does not have (no truth, no distillation, no
timings) is empty and the page says so; a part that is there and damaged is a DataError.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import Field

from fer_pipeline.artifacts.history import HISTORY
from fer_pipeline.artifacts.mined import ALL_CLASSES, SUMMARY, read_summary
from fer_pipeline.artifacts.seed_folders import of_seed
from fer_pipeline.artifacts.truth import read_truth
from fer_pipeline.core.settings import PlainName, ProjectSettings, Settings
from fer_pipeline.reporting import formatting, learners, mining, results, trainings
from fer_pipeline.reporting.charts import Charts, choose_looks
from fer_pipeline.reporting.claims import FEW as FEW_CLAIMS
from fer_pipeline.reporting.claims import describe_seeds, make_claims, place_forest, write_headline, write_rule
from fer_pipeline.reporting.formatting import listing, percent, plural
from fer_pipeline.reporting.leaks import describe_leaks
from fer_pipeline.reporting.lineage import load_census, read_lineage
from fer_pipeline.reporting.results import ALL, COMPARED, METRIC, Difference, Result

TEMPLATES = Path(__file__).parent / "templates"
FILTERS = ("percent", "points", "plus_minus", "span", "count", "megabytes", "plural", "listing", "visible", "data_uri")
FEW = 20  # test faces of a class below which the page says what one face weighs
Count = Annotated[int, Field(ge=0)]


Percent = Annotated[float, Field(ge=0, le=100)]


class PublishedResult(Settings):
    """A figure that a paper states, as it stands there: shown beside ours, measured nowhere here."""

    method: str
    train: str
    test: str  # set and protocol
    accuracy: Percent
    deviation: Percent | None = None  # standard deviation of the class accuracies
    source: str  # paper and table


class PageSettings(Settings):
    """What the page shows; doubt is measured as `evaluate` was told."""

    title: str = "Facial expression report"
    baseline: str = "baseline"  # the recipe that all others are compared with
    controls: dict[PlainName, PlainName] = Field(default_factory=dict)  # recipe: the recipe that is its control
    pairs: tuple[tuple[PlainName, PlainName], ...] = ()  # compared as well: the first minus the second
    # compared as well: what (first minus second) is above (third minus fourth), such as what noise costs two learners
    interactions: tuple[tuple[tuple[PlainName, PlainName], tuple[PlainName, PlainName]], ...] = ()
    bounds: tuple[PlainName, ...] = ()  # recipes that know what no one knows of real data: shown and never claimed
    descriptions: dict[PlainName, str] = Field(default_factory=dict)  # recipe: what it adds, in the plural
    peers: tuple[PlainName, ...] = ()  # rows that no recipe trains, compared like recipes: folders of reports/metrics
    published: tuple[PublishedResult, ...] = ()  # what the papers state, in percent
    faces_per_class: Count = 10  # mined faces shown of each class
    pool_faces_per_class: Count = 6  # faces of its pool shown on a recipe's page, of each class and from either end
    failures_per_class: Count = 4  # mistakes shown of each class and target, of those that evaluate wrote


class ReportData:
    """All that the report shows of one run, read from under the project's folder."""

    def __init__(self, root: Path, project: ProjectSettings, settings: PageSettings) -> None:
        recipes, classes = list(project.recipes), project.classes
        self.stated = settings.published
        data, metrics = root / "data", root / "reports/metrics"
        self.results = results.load_results(metrics, [*recipes, *settings.peers], project.targets)
        own = {recipe for (recipe, _), result in self.results.items() if result.predictions.trained}
        rows = [*recipes, *settings.peers]
        self.published = {recipe for recipe, _ in self.results} - own  # as they come: nothing was trained here
        baseline, controls = settings.baseline, settings.controls
        pairs = results.list_pairs(rows, baseline=baseline, controls=controls, more=settings.pairs)
        self.comparisons = results.compare_recipes(
            self.results, [*pairs, *settings.interactions], targets=project.targets, bounds=settings.bounds
        )
        self.truth = read_truth(data / "truth", project.pools)
        seed = project.seeds[0]  # whose faces and images are shown where each seed has its own
        self.sweep = mining.load_sweep(data, classes=classes, truth=self.truth, seed=seed)
        self.mined: dict[str, Any] | None = None  # the summary
        self.mined_faces, self.precisions = {}, []
        self.mined_seeds = mining.load_seeds(data / "mined", project, self.truth)  # nothing where there is one set
        mined = of_seed(data / "mined", seed)
        if (mined / SUMMARY).exists():
            self.mined = read_summary(mined)
            self.mined_faces = mining.load_mined_faces(
                data, classes=classes, truth=self.truth, per_class=settings.faces_per_class, seed=seed
            )
            self.precisions = mining.compute_precisions(mined, self.mined, self.sweep, project, self.truth)
        self.distilled = [
            one for folder in sorted(data.glob("distilled/*/")) for one in trainings.load_distilled_sets(folder, seed)
        ]
        self.timings = trainings.load_timings(root / "reports/timings", recipes, baseline=settings.baseline)
        trained = [name for name in recipes if name not in self.published]
        self.histories = trainings.load_histories(root / "models/final", trained, project.seeds)
        self.best_recipe = results.best_recipe(self.results)
        self.failures = mining.load_failures(  # of the best recipe, by target
            metrics, recipe=self.best_recipe, targets=project.targets, per_class=settings.failures_per_class
        )
        self.census = load_census(root / "reports/census", project)
        self.leaks = describe_leaks(data / "contents", project, self.census, self.mined)
        self.lineage = read_lineage(root, project)

    @property
    def differences(self) -> list[Difference]:
        """All differences in mean class accuracy, then those in accuracy, then those in the deviation over classes."""
        rows = [row for group in self.comparisons.values() for row in group]
        return [row[place] for place in range(len(COMPARED)) for row in rows]


def render(context: dict[str, Any], template: str = "index.html.j2") -> str:
    """Render a page. Jinja escapes every value; the style sheet alone is trusted."""
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters.update({name: getattr(formatting, name) for name in FILTERS})
    environment.filters["describe_seeds"] = describe_seeds
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **context)


def render_learners(
    root: Path, data: ReportData, project: ProjectSettings, settings: PageSettings, context: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Render the page of each recipe in `context["learners"]`; yields its name and the page."""
    claims = {claim.recipe: f"{claim.sentence}: {claim.size} {claim.detail}." for claim in context["claims"]}
    for recipe in context["learners"]:
        seeds = [seed for seed in project.seeds if (root / "models/final" / recipe / str(seed) / HISTORY).exists()]
        runs = dict(zip(seeds, data.histories.get(recipe, ()), strict=True))
        own = {target: result for (name, target), result in data.results.items() if name == recipe}
        rows = data.comparisons.get((recipe, settings.baseline), ())
        answer = "What the others are compared with."
        if recipe != settings.baseline:
            reason = "it was not evaluated, stands as a control or is a bound"
            answer = claims.get(recipe, f"It is not compared with {settings.baseline}: {reason}.")
        pool, labelled = learners.view_labels(
            root / "reports/labels" / f"{recipe}.parquet",
            project.classes,
            data.truth,
            shown=settings.pool_faces_per_class,
            options=learners.read_options(root / "models/final" / recipe / str(project.seeds[0])),
        )
        page = {
            "recipe": recipe,
            "strategy": project.recipes[recipe].strategy,
            "answer": answer,
            "results": own,
            "differences": {mean.target: mean for mean, *_ in rows},
            "courses_seeds": seeds,
            "courses": learners.draw_courses(runs),
            "pool": pool,
            "labelled": labelled,
            "failures": mining.load_failures(
                root / "reports/metrics", recipe=recipe, targets=[*own], per_class=settings.failures_per_class
            ),
        }
        yield recipe, render(context | page, "learner.html.j2")


def build_context(data: ReportData, project: ProjectSettings, settings: PageSettings) -> dict[str, Any]:
    """Build everything that the templates name; `charts` holds those that there is something to draw for."""
    baseline, controls, recipes = settings.baseline, settings.controls, [*project.recipes, *settings.peers]
    looks = choose_looks(recipes, baseline=baseline, controls=controls)
    means = [row for row in data.differences if row.metric == METRIC]
    trained = [name for name in recipes if name not in data.published]  # a published network adds nothing to them
    claims = make_claims(
        trained, data.comparisons, baseline=baseline, controls=controls, descriptions=settings.descriptions
    )
    by_target = {
        target: rows
        for target in project.targets
        if (rows := sorted(_on(data, target), key=lambda result: result.recipe in data.published))
    }
    loss = trainings.find_loss(data.histories)
    charts: Charts = mining.draw_mining(data.mined, data.precisions, data.sweep) if data.mined else {}
    for distilled in data.distilled:
        charts |= distilled.charts if distilled.is_shown else {}
    charts |= trainings.draw_trainings(data.timings, data.histories, looks, loss)
    levels = {target: _level(row) for (name, target), row in data.results.items() if name == baseline}
    return vars(data) | {
        "project": project,
        "title": settings.title,
        "baseline": baseline,
        "draws": next(iter(data.results.values())).resampling.bootstrap,
        "all_targets": ALL,
        "all_classes": ALL_CLASSES,
        "looks": looks,
        "claims": claims,
        "bounds": settings.bounds,
        "num_deciding": sum(row.decision is not None for row in means),
        "few_claims": FEW_CLAIMS,
        "headline": write_headline(claims, baseline=baseline),
        "length": trainings.describe_length(data.timings, data.histories),
        "claim_rule": write_rule(data.comparisons),
        "forest": place_forest([row for row in means if row.against == baseline], looks),
        "seed_ranges": mining.describe_seeds(data.mined_seeds),
        "all_pools": mining.ALL_POOLS,
        "drawn_anew": bool(data.mined_seeds or any(one.seed is not None for one in data.distilled)),
        "levels": {ALL: math.fsum(levels.values()) / len(levels), **levels} if levels else {},
        "warnings": _warnings(data, project, recipes, baseline, by_target),
        "by_target": by_target,
        "best": {target: max(rows, key=_level).recipe for target, rows in by_target.items()},
        "confusions": {key: results.shade_confusion(result) for key, result in data.results.items()},
        "num_seeds": max(len(result.seeds) for result in data.results.values()),
        "resampled": _describe_resampling(by_target),
        "loss": loss,
        "learners": [
            name for name in project.recipes if name in data.histories or name in {one for one, _ in data.results}
        ],
        "took_by": {row.recipe: row for row in data.timings},
        "rule": mining.rule_of(data.mined or {}).replace("_", " "),
        "charts": {name: svg for name, svg in charts.items() if svg},
    }


def _on(data: ReportData, target: str) -> list[Result]:
    return [result for (_, name), result in data.results.items() if name == target]


def _level(result: Result) -> float:
    return result.over_seeds[METRIC].mean


def _describe_resampling(by_target: dict[str, list[Result]]) -> str:
    persons = [name for name, (one, *_) in by_target.items() if one.resampling.by_subject and one.predictions.clusters]
    faces = [target for target in by_target if target not in persons]
    if not faces:
        return "whole persons are drawn"
    if not persons:
        return "faces are drawn within each true class"
    return f"whole persons are drawn on {listing(persons)}, faces within each true class on {listing(faces)}"


def _warnings(
    data: ReportData,
    project: ProjectSettings,
    recipes: list[str],
    baseline: str,
    by_target: dict[str, list[Result]],
) -> list[str]:
    lacking = {
        recipe: [target for target in project.targets if (recipe, target) not in data.results] for recipe in recipes
    }
    whole = [recipe for recipe, targets in lacking.items() if len(targets) == len(project.targets)]
    parts = [
        f"{recipe} on {listing(targets)}" for recipe, targets in lacking.items() if targets and recipe not in whole
    ]
    missing = [*whole, *parts]
    warnings = list(data.leaks)
    if missing:
        warnings.append(f"Not evaluated, so not in here: {listing(missing)}.")
    if baseline not in project.recipes:
        choices = listing(list(project.recipes))
        warnings.append(f"There is no recipe “{baseline}” to compare with; set report.baseline to one of {choices}.")
    own = [result for result in data.results.values() if result.predictions.trained]
    short = sorted({result.recipe for result in own if len(result.seeds) < len(project.seeds)})
    warnings += [
        f"{result.predictions.seen}, which {target} is: the figures of {recipe} are of pictures that it knows."
        for (recipe, target), result in data.results.items()
        if result.predictions.seen
    ]
    if short:
        warnings.append(f"Evaluated with fewer than {plural(len(project.seeds), 'seed')}: {listing(short)}.")
    for target, rows in by_target.items():  # where a single test face weighs much
        supports = {name: number for name, number in rows[0].first.supports.items() if number}
        if few := [f"{name} {number}" for name, number in supports.items() if number < FEW]:
            weight = percent(1 / (min(supports.values()) * len(supports)))
            effect = f"one face can move its mean class accuracy by {weight} points"
            warnings.append(f"{target} has few test faces of {listing(few)}: {effect}.")
    return warnings
