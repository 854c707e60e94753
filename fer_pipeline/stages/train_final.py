"""Train final: the labelled train split and what a recipe uses in; one final model for every seed out.

Source: OS-FER (arXiv:2005.08551), section 3.5, eq. 2. For a fair comparison all recipes of a seed start from the same
initial weights, divide the labelled set alike and take the same number of steps, that of `training.epochs` over the
labelled set. What is used beside it:

- `labelled`: nothing (the baseline);
- `mined`, `random`: pseudo-labelled faces (the VAS, and as many that were not filtered by margin);
- `distilled`: synthetic images in the network's input space (the DAS);
- `random_real`: `real_per_class` random mined faces of every class in the place of the distilled images.

Seeds are independent: they train in several processes, each on a GPU of its own or on a CPU with the same number of
threads, so that the bytes are those of one after the other. With `parallel: data` all GPUs train one seed after the
other together; sums then depend on their number, and bytes are not promised across it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from fer_pipeline.artifacts.faces import read_about, read_table
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, fresh_folder, read_json, write_json
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.plugins import load
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import STORE, ProjectSettings, RecipeSettings, Resources, Settings, validate
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.extras import Extra, class_counts, extra_sha256, read_extra
from fer_pipeline.training.fabric import Place, make_place
from fer_pipeline.training.fit import length
from fer_pipeline.training.job import Start, Trained, train
from fer_pipeline.training.partition import FIT, partition
from fer_pipeline.training.processes import Advance, spread
from fer_pipeline.training.ranks import launch, together
from fer_pipeline.training.records import read_history
from fer_pipeline.training.room import room_of
from fer_pipeline.training.sets import folder_sha256, read_images, refuse_empty_classes
from fer_pipeline.training.settings import TrainingSettings

VERSION = 1
STAGE = "train_final"
VALIDATION = "validation"


class Config(Settings):
    """The section `train_final` of params.yaml."""

    network: NetworkSettings = NetworkSettings()
    weights: WeightSettings | None = None  # the initial weights of every recipe; null: drawn from the seed
    training: TrainingSettings = TrainingSettings()
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the labelled set that chooses the epoch
    by_subject: bool = True  # false: pictures of one person may be on both sides
    options: dict[str, Any] = Field(default_factory=dict)  # of the strategy
    real_per_class: Annotated[int, Field(ge=1)] = 1  # of random_real: as many as are distilled
    empty_class: Literal["warn", "error"] = "warn"  # where a recipe uses no face of a class

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        if self.training.select == "best" and self.validation == 0:
            raise ValueError("training.select: best needs validation above 0; or set training.select: last")
        return self


@dataclass(frozen=True)
class Task:
    """All that a process needs to train some seeds of a recipe."""

    config: Config
    settings: RecipeSettings
    options: Settings
    labelled: Path
    extra: Path
    classes: tuple[str, ...]
    data: dict[str, str]
    store: Path
    resources: Resources
    processes: int  # that work at a time
    owner: str  # of what it keeps in the store


def run(
    config: Config,
    project: ProjectSettings,
    *,
    recipe: str,
    labelled: Path,
    extra: Path,
    out: Path,
    timings: Path,
    store: Path = STORE,
) -> Summary:
    """Train the final models of one recipe, one for every seed.

    Args:
        config: The section `train_final`.
        project: What all stages share.
        recipe: The recipe's name in the settings.
        labelled: The train split of the labelled set.
        extra: The data that the recipe uses beside it.
        out: Where a model is written for each seed; those that the store has are linked.
        timings: Where the seconds per epoch are written.
        store: Where finished models and the states of unfinished ones are kept.
    """
    settings, classes, seeds, resources = project.recipe(recipe), project.classes, project.seeds, project.resources
    own, options = settle(config, settings, recipe=recipe)
    warnings = _unequal(config, own)
    if (counts := class_counts(settings.use, extra, classes=classes)) is not None:
        warnings += _check_empty(counts, classes, extra, own.empty_class)
    data = {"labelled": folder_sha256(labelled)}
    if settings.use != "labelled":
        data[settings.use] = extra_sha256(settings.use, extra)
    weights = file_sha256(own.weights.path) if own.weights and own.weights.path.is_file() else None
    parts = (STAGE, VERSION, own, options, settings.strategy, settings.use, list(classes), data, weights)
    keys = {seed: fingerprint(*parts, seed) for seed in seeds}
    owner = f"{STAGE}@{recipe}"
    shelf = Store(store, owner=owner)
    missing = [(seed, key) for seed, key in keys.items() if not shelf.has(key)]
    if missing:
        labels = read_table(labelled, ["label"]).column("label")
        estimate = round((len(labels) - labels.null_count) * (1 - own.validation))
        total = len(missing) * length(own.training, max(estimate, 1))[0]
        devices = together(resources, usual="seeds")
        alone = worker_devices(resources)[: len(missing)]
        processes = len(devices or alone)
        task = Task(own, settings, options, labelled, extra, classes, data, store, resources, processes, owner)
        with progress(f"train_final {recipe}", total, "steps") as advance:
            if devices:
                for seed, key in missing:
                    work = partial(train_together, task, seed, key)
                    launch(work, devices, precision=own.training.precision, advance=advance)
            else:
                items = [(seed, key, alone[index % len(alone)]) for index, (seed, key) in enumerate(missing)]
                spread(partial(train_seeds, task), items, workers=len(alone), advance=advance)
    fresh_folder(out)
    for seed, key in keys.items():
        shelf.link(key, out / str(seed))
        shelf.drop_state(STAGE, key)
    times = _timings(shelf, recipe, keys)
    write_json(timings, times)
    shelf.used([*keys.values(), *map(_timing_key, keys.values())])
    fresh = [times["seeds"].get(str(seed), {}) for seed, _ in missing]
    warnings += sorted({line for timing in fresh for line in timing.get("advice", [])})
    return _summary(recipe, out, seeds, trained=len(missing), warnings=warnings)


def settle(config: Config, settings: RecipeSettings, *, recipe: str) -> tuple[Config, Settings]:
    """A recipe's own `Config`, with its overrides, and its strategy's options; ConfigError where they do not fit."""
    merged = _merge(config.model_dump(mode="json"), settings.overrides)
    own = validate(Config, merged, where=f"recipes.{recipe}.overrides")
    strategy = load("fer_pipeline.strategies", settings.strategy)
    return own, validate(strategy.Options, own.options, where=f"options of recipe {recipe} ({settings.strategy})")


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        old = base.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            merged[name] = _merge(old, value)
        else:
            merged[name] = value  # an optimizer or schedule of another name brings all its settings
    return merged


def _unequal(config: Config, own: Config) -> list[str]:
    def start_and_length(chosen: Config) -> dict[str, Any]:
        training = chosen.training
        return {
            "network": chosen.network,
            "weights": chosen.weights,
            "training.epochs": training.epochs,
            "training.steps": training.steps,
            "training.batch": training.batch,
        }

    base, here = start_and_length(config), start_and_length(own)
    changed = [name for name, value in here.items() if value != base[name]]
    return [f"overrides {', '.join(changed)}: no fair comparison with the other recipes"] if changed else []


def _check_empty(counts: np.ndarray, classes: tuple[str, ...], extra: Path, rule: str) -> list[str]:
    if empty := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        line = f"{extra} has no image of the class {', '.join(empty)}; mine with a smaller margin or more pictures"
        if rule == "error":
            raise DataError(f"{line}, or set train_final.empty_class: warn")
        return [line]
    return []


def train_seeds(task: Task, missing: Sequence[tuple[int, str, str]], advance: Advance) -> None:
    """Trains some seeds (with their keys, all on one device) one after the other; the images are read once."""
    shelf = Store(task.store, owner=task.owner)
    device = missing[0][2]
    sources = Sources(task, resolve_device(device))
    for seed, key, _ in missing:
        place = make_place(device, task.config.training.precision)
        shelf.make_folder(
            key, lambda folder, seed=seed, key=key, place=place: _train(sources, seed, key, folder, place, advance)
        )


def train_together(task: Task, seed: int, key: str, place: Place, advance: Advance) -> None:
    """Trains one seed as one of several processes; the first of them writes."""
    sources = Sources(task, place.device)
    if place.leads:
        Store(task.store, owner=task.owner).make_folder(
            key, lambda folder: _train(sources, seed, key, folder, place, advance)
        )
    else:
        _train(sources, seed, key, Path(), place, advance)


class Sources:
    """The labelled set and what the recipe uses beside it, read when first wanted and kept for all seeds."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self._room = room_of(task.resources, device, processes=task.processes)
        self.labelled = read_images(task.labelled, classes=task.classes, room=self._room)
        refuse_empty_classes(self.labelled.counts(len(task.classes)), classes=task.classes, where=task.labelled)
        self._extra: Extra | None = None

    def extra(self, seed: int) -> Extra:
        """What one seed uses; only `random_real` is drawn anew."""
        task = self.task
        if self._extra is None or task.settings.use == "random_real":
            self._extra = read_extra(
                task.settings.use,
                task.extra,
                classes=task.classes,
                real_per_class=task.config.real_per_class,
                seed=seed,
                room=self._room,
            )
        return self._extra


def _train(sources: Sources, seed: int, key: str, folder: Path, place: Place, advance: Advance) -> None:
    task, labelled, extra = sources.task, sources.labelled, sources.extra(seed)
    config, shelf = task.config, Store(task.store, owner=task.owner)
    parts = partition(
        labelled.labels.numpy(),
        labelled.subjects if config.by_subject else np.full(len(labelled), "", dtype=object),
        shares={VALIDATION: config.validation},
        seed=seed,
        num_classes=len(task.classes),
    )
    chosen = np.flatnonzero(parts == VALIDATION)
    strategy = load("fer_pipeline.strategies", task.settings.strategy)
    made = read_about(task.labelled)
    trained = train(
        Start(config.network.sized(int(made["crop"])), config.weights, task.classes, seed),
        lambda ingredients: strategy.build(task.options, ingredients),
        {"labelled": labelled.take(np.flatnonzero(parts == FIT)), **extra.sets},
        labelled.take(chosen) if len(chosen) else None,
        settings=config.training,
        device=place,
        state=shelf.state(STAGE, key),
        folder=folder,
        about={
            "stage": STAGE,
            "strategy": task.settings.strategy,
            "use": task.settings.use,
            "options": task.options.model_dump(mode="json"),
            "faces": made,
        },
        data=task.data,
        advance=advance,
        prepare=lambda sets, preprocessing: {**sets, **extra.fitted(preprocessing)},
    )
    if place.leads:
        shelf.make(_timing_key(key), lambda path: write_json(path, _timing(trained, place)))


def _timing_key(key: str) -> str:
    return fingerprint("timing", key)


def _timing(trained: Trained, place: Place) -> dict[str, Any]:
    per_step = trained.fitted.seconds / trained.fitted.steps
    return {
        "device": place.device.type,
        "processes": place.part[1],
        "steps": trained.fitted.steps,
        "seconds": trained.fitted.seconds,
        "seconds_waited_for_images": trained.fitted.waited,
        "seconds_per_step": per_step,
        "steps_per_epoch": trained.steps_per_own_epoch,
        "seconds_per_epoch": per_step * trained.steps_per_own_epoch,
        "images": trained.images,
        "advice": list(trained.speed.advice),
    }


def _timings(shelf: Store, recipe: str, keys: Mapping[int, str]) -> dict[str, Any]:
    found = {seed: shelf.shard(_timing_key(key)) for seed, key in keys.items()}
    return {"recipe": recipe, "seeds": {str(seed): read_json(path) for seed, path in found.items() if path.exists()}}


def _summary(recipe: str, out: Path, seeds: Sequence[int], *, trained: int, warnings: list[str]) -> Summary:
    figures, steps = [], set()
    for seed in seeds:
        card, history = read_card(out / str(seed)), read_history(out / str(seed))
        chosen = history[card.training["chosen_epoch"] - 1]
        figures.append(chosen.get("validation_mean_class_accuracy", float("nan")))
        steps.add(card.training["steps"])
        warnings += [note for note in card.training["notes"] if note not in warnings]
    counts: dict[str, int | float] = {"seeds": len(seeds), "trained": trained, "steps": max(steps)}
    line = (
        f"{recipe}: {len(seeds)} models ({trained} trained, {len(seeds) - trained} from the store), {max(steps)} steps"
    )
    if np.isfinite(figures).all():
        counts["validation_mean_class_accuracy"] = float(np.mean(figures))
        line += f", validation mean class accuracy {np.mean(figures):.3f}"
    return Summary(STAGE, line, counts, tuple(warnings))
