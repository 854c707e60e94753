"""Train the final models of one recipe, one for every seed.

Source: OS-FER (arXiv:2005.08551), section 3.5, eq. 2. For a fair comparison all recipes of a seed start from the same
initial weights, divide the labelled set alike and take the same number of steps, that of `training.epochs` over the
labelled set, or end by the same rule, `training.until`. A recipe names its strategy and a folder for each source that
the strategy reads; with any strategy `reviewed` names faces that people judged (`data/reviewed`), which join the
labelled ones after these were divided. They lengthen an epoch of the labelled set; `training.steps` keeps the number of
steps equal.

A strategy that learns nothing has one model, which stands for all seeds; it is written under the first of them. Where
each seed learned from a set or a network of its own, `seeds.json` beside the models says so, and a recipe that learns
from these models gives each seed that of the same seed alone.

All seeds have the same validation faces: those of `train_primitive`, which that labeller did not learn from either. Its
held-out faces are trained on here.

A finished model is kept in the store under all that it depends on: settings, data, initial weights, and the code of its
strategy and of the training. `training.seeds` says how the seeds share the machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from fer_pipeline.artifacts.history import read_history, write_timings
from fer_pipeline.artifacts.labels import label_faces, write_labels
from fer_pipeline.artifacts.seed_folders import common_seeds
from fer_pipeline.artifacts.split import VALIDATION
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.plugins import available
from fer_pipeline.core.settings import (
    STORE,
    PlainName,
    ProjectSettings,
    RecipeSettings,
    Settings,
    Summary,
    merge_settings,
    validate,
)
from fer_pipeline.networks.checkpoints import checkpoint_folders, load_checkpoint
from fer_pipeline.networks.settings import read_card
from fer_pipeline.training.label_noise import summarise_noise
from fer_pipeline.training.seeds import SeedTraining, make_models
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.sources import Checkpoints, Faces, Source, check_sources, sources_of
from fer_pipeline.training.strategy import draws, learns, load_strategy, settle_settings

STAGE = "train_final"
INSTEAD = "training.select: last and a number of epochs or steps"


class Config(ModelSettings):
    """The section `train_final` of params.yaml."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the labelled set that chooses the epoch
    by_subject: bool = True  # false: pictures of one person may be on both sides
    options: dict[PlainName, dict[str, Any]] = Field(default_factory=dict)  # of each strategy, by its name
    empty_class: Literal["warn", "error"] = "warn"  # where a source of a recipe has no face of a class

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        if self.validation == 0 and (needs := self.training.needs_validation):
            raise ValueError(f"training.{needs} needs validation above 0; or set {INSTEAD}")
        return self


@dataclass(frozen=True)
class Recipe:
    """A recipe's settings, checked: its `Config` with its overrides and without options, and its strategy's parts."""

    config: Config
    used: Config  # what of it the strategy uses
    module: ModuleType
    options: Settings
    sources: dict[str, Source]


def run(
    config: Config,
    project: ProjectSettings,
    *,
    recipe: str,
    sources: dict[str, Path],
    out: Path,
    timings: Path,
    labels: Path | None = None,
    store: Path = STORE,
) -> Summary:
    """Train the final models of one recipe, one for every seed.

    Args:
        recipe: The recipe's name in the settings.
        sources: The folder of each source that the recipe's strategy reads.
        out: Where a model is written for each seed; those that the store has are linked.
        timings: Where the seconds per epoch are written.
        labels: Where it is written what the first model calls some faces of the recipe's pool and its labelled set.
        store: Where finished models and the states of unfinished ones are kept.
    """
    settings, classes = project.recipe(recipe), project.classes
    settled = settle(config, settings, recipe=recipe, classes=classes)
    trains = learns(settled.module)
    seeds = project.seeds if trains else project.seeds[:1]
    check_sources(settled.sources, sources, where=f"recipe {recipe} ({settings.strategy})")
    own = settled.config
    shared = (
        "network",
        "weights",
        "label_noise",
        "training.epochs",
        "training.steps",
        "training.until",
        "training.batch",
    )
    changed = [name for name in shared if attrgetter(name)(own) != attrgetter(name)(config)]
    unfair = f"overrides {', '.join(changed)}: no fair comparison with the other recipes"
    warnings = [unfair] if changed and trains else []
    if own.label_noise:
        teachers = [name for name in sources if isinstance(settled.sources[name], Checkpoints)]
        cards = {name: [read_card(one) for one in checkpoint_folders(sources[name])] for name in teachers}
        clean = [name for name in teachers if not all("label_noise" in card.training for card in cards[name])]
        warnings += [f"its labels are changed, those that its source {name} learned from were not" for name in clean]
    folders = {
        seed: {
            name: path if name == "labelled" else settled.sources[name].of_seed(path, seed)
            for name, path in sources.items()
        }
        for seed in seeds
    }
    data: dict[tuple[str, Path], str] = {}  # hashes
    for name, folder in dict.fromkeys(pair for own in folders.values() for pair in own.items()):
        counts = settled.sources[name].class_counts(folder, classes)
        data[name, folder] = settled.sources[name].sha256(folder)
        if counts is None or name == "labelled" or counts.all():
            continue
        empty = ", ".join(one for one, count in zip(classes, counts, strict=True) if count == 0)
        line = f"{folder} has no image of the class {empty}; mine with a smaller margin or more pictures"
        if own.empty_class == "error":
            raise DataError(f"{line}, or set train_final.empty_class: warn")
        warnings.append(line)
    training = partial(
        SeedTraining,
        owner=f"{STAGE}@{recipe}",
        config=settled.used,
        strategy=settings.strategy,
        options=settled.options,
        shares={VALIDATION: own.validation},
        by_subject=own.by_subject,
        split_seed=project.seeds[0],
        classes=classes,
        store=store,
        resources=project.resources,
    )
    models = {
        str(seed): (training(folders=own, data={name: data[name, path] for name, path in own.items()}), seed)
        for seed, own in folders.items()
    }
    nested = seeds if trains and common_seeds(*(path for name, path in sources.items() if name != "labelled")) else ()
    trained, times = make_models(models, out, usual="seeds", seeds=nested)
    write_timings(timings, recipe, {seed: times[str(seed)] for seed in seeds if trains and str(seed) in times})
    if labels is not None:
        pools = [
            folders[seeds[0]][name]
            for name, source in settled.sources.items()
            if name in sources and isinstance(source, Faces) and source.label is None
        ]
        unlabelled, learned, pool, labelled = [], [], 0, 0
        if pools or trains:
            model = load_checkpoint(out / str(seeds[0]), classes=classes, device=project.resources.device)
            label = partial(label_faces, predict=model.predict, classes=classes, seed=seeds[0])
            if pools:
                unlabelled, pool = label(pools[0])
            if trains:
                given = models[str(seeds[0])][0].fitted_labels()
                learned, labelled = label(sources["labelled"], given=given)
        write_labels(labels, [*unlabelled, *learned], seed=seeds[0], pool=pool, labelled=labelled)
    warnings += sorted({line for name in trained for line in times.get(name, {}).get("advice", [])})
    if not trains:
        return _summary_of_published(recipe, out / str(seeds[0]))
    drawn = draws(settled.module)  # else seeds with the same data have equal models
    distinct = len(seeds) if drawn else len({tuple(data[pair] for pair in own.items()) for own in folders.values()})
    return _summary(recipe, out, seeds, trained=len(trained), distinct=distinct, warnings=warnings)


def settle(config: Config, settings: RecipeSettings, *, recipe: str, classes: Sequence[str]) -> Recipe:
    """A recipe's settings, checked; ConfigError where overrides, options or sources do not fit its strategy."""
    if strangers := sorted(set(config.options) - set(available("fer_pipeline.strategies"))):
        raise ConfigError(
            f"train_final.options: no strategy {strangers[0]!r}; options stand under their strategy's name, "
            f"{{{settings.strategy}: {{…}}}}, of {', '.join(available('fer_pipeline.strategies'))}"
        )
    common = {**config.model_dump(mode="json"), "options": config.options.get(settings.strategy, {})}
    merged = merge_settings(common, settings.overrides)
    chosen = merged.pop("options")
    own = validate(Config, merged, where=f"recipes.{recipe}.overrides")
    try:
        module = load_strategy(settings.strategy)
    except ConfigError as error:
        raise ConfigError(f"recipes.{recipe}.strategy: {error}") from None
    options = validate(module.Options, chosen, where=f"options of recipe {recipe} ({settings.strategy})")
    if getattr(options, "mining_features", ()):
        raise ConfigError(f"recipes.{recipe}: mining_features are of train_primitive, a final model mines nothing")
    sources = sources_of(module, options)
    if "labelled" not in sources or not sources["labelled"].required:
        raise ConfigError(f"strategies/{settings.strategy}.py: sources must have a required 'labelled'")
    check_sources(sources, settings.sources, where=f"recipes.{recipe}.sources ({settings.strategy})")
    given = {section: settings.overrides.get(section) or () for section in ("network", "training")}
    try:
        used = settle_settings(module, own, given)
        if hasattr(module, "check"):
            module.check(used, options, frozenset(settings.sources), classes)
    except ConfigError as error:
        raise ConfigError(f"recipes.{recipe} ({settings.strategy}): {error}") from None
    if own.label_noise:
        own.label_noise.check(classes, where=f"recipes.{recipe}")
    return Recipe(own, used, module, options, sources)


def check_recipes(config: Config, project: ProjectSettings) -> dict[str, Recipe]:
    """Returns every recipe, settled; refuses options that do not fit their strategy, whoever uses it."""
    settled = {
        name: settle(config, recipe, recipe=name, classes=project.classes) for name, recipe in project.recipes.items()
    }
    for strategy in set(config.options) - {recipe.strategy for recipe in project.recipes.values()}:
        where = f"train_final.options.{strategy}"
        validate(load_strategy(strategy).Options, config.options[strategy], where=where)
    return settled


def _summary_of_published(recipe: str, folder: Path) -> Summary:
    training = read_card(folder).training
    found = training["found"]["labelled_mean_class_accuracy"]
    line = f"{recipe}: a network as it comes, nothing trained; mean class accuracy on the labelled faces {found:.3f}"
    return Summary(STAGE, line, {"seeds": 0, "labelled_mean_class_accuracy": found}, tuple(training["notes"]))


def _summary(
    recipe: str, out: Path, seeds: Sequence[int], *, trained: int, distinct: int, warnings: list[str]
) -> Summary:
    figures, steps, unfinished = [], [], 0
    for seed in seeds:
        card, history = read_card(out / str(seed)), read_history(out / str(seed))
        chosen = history[card.training["chosen_epoch"] - 1]
        figures.append(chosen.get("validation_mean_class_accuracy", float("nan")))
        steps.append(card.training["steps"])
        unfinished += card.training["stopped_rising"] is False
        warnings += [note for note in card.training["notes"] if note not in warnings]
    counts: dict[str, int | float] = {"seeds": len(seeds), "trained": trained, "steps": max(steps)}
    if unfinished:
        warnings.append(
            f"{unfinished} of {len(seeds)} models ended by training.until.at_most while their validation was rising; "
            "raise it, or the comparison is one of unfinished models"
        )
    taken = f"{max(steps)} steps" if len(set(steps)) == 1 else f"{', '.join(map(str, steps))} steps"
    equal = f", {len(seeds) - distinct} equal to another seed's" if distinct < len(seeds) else ""
    line = f"{recipe}: {len(seeds)} models ({trained} trained, {distinct - trained} from the store{equal}), {taken}"
    if np.isfinite(figures).all():
        counts["validation_mean_class_accuracy"] = float(np.mean(figures))
        line += f", validation mean class accuracy {np.mean(figures):.3f}"
    noise, changed = summarise_noise(read_card(out / str(seeds[0])).training)
    line, counts = line + noise, counts | changed
    return Summary(STAGE, line, counts, tuple(warnings))
