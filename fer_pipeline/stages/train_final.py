"""Train the final models of one recipe, one for every seed.

Source: OS-FER (arXiv:2005.08551), section 3.5, eq. 2. For a fair comparison all recipes of a seed start from the same
initial weights, divide the labelled set alike and take the same number of steps, that of `training.epochs` over the
labelled set. A recipe names its strategy and a folder for each source that the strategy reads.

A finished model is kept in the store under all that it depends on: settings, data, initial weights, and the code of its
strategy and of the training. Seeds are independent: they train in several processes, each on a GPU of its own or on a
CPU with the same number of threads, so that the bytes are those of one after the other. With `parallel: data` all GPUs
train one seed after the other together; sums then depend on their number, and bytes are not promised across it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from fer_pipeline.artifacts.faces import read_metadata, read_table
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import FIT, VALIDATION
from fer_pipeline.artifacts.store import Store
from fer_pipeline.artifacts.timings import write_timings
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256, fresh_folder, read_json, write_json
from fer_pipeline.core.fingerprints import PACKAGE, code_fingerprint, fingerprint
from fer_pipeline.core.plugins import available
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import STORE, PlainName, ProjectSettings, RecipeSettings, Resources, Settings, validate
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.fit import Execution, TrainingJob, TrainingResult, length, train
from fer_pipeline.training.images import memory_budget
from fer_pipeline.training.sets import ImageSet, partition, refuse_empty_classes
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.sources import Source, check_sources
from fer_pipeline.training.strategy import load_strategy, strategy_files
from fer_pipeline.training.worker import Advance, Worker, group_devices, make_worker, run_group, run_shares

STAGE = "train_final"
# What a model's bytes depend on, beside its strategy: changed code trains anew.
CODE = (
    "stages/train_final.py",
    "training",
    "networks",
    "core/seeds.py",
    "artifacts/faces.py",
    "artifacts/arrow.py",
    "artifacts/distilled.py",
    "artifacts/history.py",
    "evaluation/metrics.py",
)


class Config(Settings):
    """The section `train_final` of params.yaml."""

    network: NetworkSettings = NetworkSettings()
    weights: WeightSettings | None = None  # the initial weights of every recipe; null: drawn from the seed
    training: TrainingSettings = TrainingSettings()
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of the labelled set that chooses the epoch
    by_subject: bool = True  # false: pictures of one person may be on both sides
    options: dict[PlainName, dict[str, Any]] = Field(default_factory=dict)  # of each strategy, by its name
    empty_class: Literal["warn", "error"] = "warn"  # where a source of a recipe has no face of a class

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        if self.training.select == "best" and self.validation == 0:
            raise ValueError("training.select: best needs validation above 0; or set training.select: last")
        return self


@dataclass(frozen=True)
class Recipe:
    """A recipe's settings, checked: its `Config` with its overrides and without options, and its strategy's parts."""

    config: Config
    module: ModuleType
    options: Settings
    sources: dict[str, Source]


@dataclass(frozen=True)
class Task:
    """All that a process needs to train some seeds of a recipe; picklable."""

    config: Config
    recipe: str
    strategy: str
    options: Settings
    folders: dict[str, Path]  # of the sources
    classes: tuple[str, ...]
    data: dict[str, str]  # hashes of the sources
    store: Path
    resources: Resources
    processes: int  # that work at a time

    def open_store(self) -> Store:
        """The store, as the owner of this recipe's models."""
        return Store(self.store, owner=f"{STAGE}@{self.recipe}")


def run(
    config: Config,
    project: ProjectSettings,
    *,
    recipe: str,
    sources: dict[str, Path],
    out: Path,
    timings: Path,
    store: Path = STORE,
) -> Summary:
    """Train the final models of one recipe, one for every seed.

    Args:
        config: The section `train_final`.
        project: What all stages share.
        recipe: The recipe's name in the settings.
        sources: The folder of each source that the recipe's strategy reads.
        out: Where a model is written for each seed; those that the store has are linked.
        timings: Where the seconds per epoch are written.
        store: Where finished models and the states of unfinished ones are kept.
    """
    settings, classes, seeds, resources = project.recipe(recipe), project.classes, project.seeds, project.resources
    settled = settle(config, settings, recipe=recipe)
    check_sources(settled.sources, sources, where=f"recipe {recipe} ({settings.strategy})")
    own = settled.config
    warnings = _unequal(config, own)
    for name, folder in sources.items():
        counts = settled.sources[name].class_counts(folder, classes)
        if counts is not None and name != "labelled":
            warnings += _check_empty(counts, classes, folder, own.empty_class)
    data = {name: settled.sources[name].sha256(folder) for name, folder in sources.items()}
    files = [one for one in (own.weights, *vars(settled.options).values()) if isinstance(one, WeightSettings)]
    weights = [file_sha256(one.path) if one.path.is_file() else None for one in files]
    code = code_fingerprint(*(PACKAGE / path for path in CODE), *strategy_files(settled.module))
    parts = (STAGE, code, own, settled.options, settings.strategy, list(classes), data, weights)
    keys = {seed: fingerprint(*parts, seed) for seed in seeds}
    kept = Store(store, owner=f"{STAGE}@{recipe}")
    missing = [(seed, key) for seed, key in keys.items() if not kept.has(key)]
    if missing:
        labels = read_table(sources["labelled"], ["label"]).column("label")
        estimate = round((len(labels) - labels.null_count) * (1 - own.validation))
        total = len(missing) * length(own.training, max(estimate, 1))[0]
        group = group_devices(resources, usual="seeds")
        alone = worker_devices(resources)[: len(missing)]
        processes = len(group or alone)
        task = Task(
            config=own,
            recipe=recipe,
            strategy=settings.strategy,
            options=settled.options,
            folders=dict(sources),
            classes=classes,
            data=data,
            store=store,
            resources=resources,
            processes=processes,
        )
        with progress(f"train_final {recipe}", total, "steps") as advance:
            if group:
                for seed, key in missing:
                    work = partial(train_in_group, task, seed, key)
                    run_group(work, group, precision=own.training.precision, advance=advance)
            else:
                items = [(seed, key, alone[index % len(alone)]) for index, (seed, key) in enumerate(missing)]
                run_shares(partial(train_seeds, task), items, workers=len(alone), advance=advance)
    fresh_folder(out)
    for seed, key in keys.items():
        kept.link(key, out / str(seed))
        kept.drop_state(STAGE, key)
    paths = {seed: kept.shard(_timing_key(key)) for seed, key in keys.items()}
    times = {seed: read_json(path) for seed, path in paths.items() if path.exists()}
    write_timings(timings, recipe, times)
    kept.record_run([*keys.values(), *map(_timing_key, keys.values())])
    fresh = [times.get(seed, {}) for seed, _ in missing]
    warnings += sorted({line for timing in fresh for line in timing.get("advice", [])})
    return _summary(recipe, out, seeds, trained=len(missing), warnings=warnings)


def settle(config: Config, settings: RecipeSettings, *, recipe: str) -> Recipe:
    """A recipe's settings, checked; ConfigError where overrides, options or sources do not fit its strategy."""
    if strangers := sorted(set(config.options) - set(available("fer_pipeline.strategies"))):
        raise ConfigError(
            f"train_final.options: no strategy {strangers[0]!r}; options stand under their strategy's name, "
            f"{{{settings.strategy}: {{…}}}}, of {', '.join(available('fer_pipeline.strategies'))}"
        )
    common = {**config.model_dump(mode="json"), "options": config.options.get(settings.strategy, {})}
    merged = _merge(common, settings.overrides)
    chosen = merged.pop("options")
    own = validate(Config, merged, where=f"recipes.{recipe}.overrides")
    module = load_strategy(settings.strategy)
    options = validate(module.Options, chosen, where=f"options of recipe {recipe} ({settings.strategy})")
    sources = module.sources(options)
    if "labelled" not in sources or not sources["labelled"].required:
        raise ConfigError(f"strategies/{settings.strategy}.py: sources must have a required 'labelled'")
    check_sources(sources, settings.sources, where=f"recipes.{recipe}.sources ({settings.strategy})")
    return Recipe(own, module, options, sources)


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


def _check_empty(counts: np.ndarray, classes: Sequence[str], folder: Path, rule: str) -> list[str]:
    if empty := [name for name, count in zip(classes, counts, strict=True) if count == 0]:
        line = f"{folder} has no image of the class {', '.join(empty)}; mine with a smaller margin or more pictures"
        if rule == "error":
            raise DataError(f"{line}, or set train_final.empty_class: warn")
        return [line]
    return []


def train_seeds(task: Task, missing: Sequence[tuple[int, str, str]], advance: Advance) -> None:
    """Trains some seeds (with their keys, all on one device) one after the other; the images are read once."""
    device = missing[0][2]
    sources = SourceReader(task, resolve_device(device))
    for seed, key, _ in missing:
        worker = make_worker(device, task.config.training.precision)
        task.open_store().make_folder(
            key, lambda folder, seed=seed, key=key, worker=worker: _train(sources, seed, key, folder, worker, advance)
        )


def train_in_group(task: Task, seed: int, key: str, worker: Worker, advance: Advance) -> None:
    """Trains one seed as one of several processes; the leader writes."""
    sources = SourceReader(task, worker.device)
    if worker.is_leader:
        task.open_store().make_folder(key, lambda folder: _train(sources, seed, key, folder, worker, advance))
    else:
        _train(sources, seed, key, Path(), worker, advance)


class SourceReader:
    """The sources of a recipe, read when first wanted and kept for all seeds that read the same."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.strategy = load_strategy(task.strategy)
        self.declared: dict[str, Source] = self.strategy.sources(task.options)
        self._budget = memory_budget(task.resources, device, processes=task.processes)
        self._sets: dict[str, ImageSet] = {}

    def read(self, seed: int) -> dict[str, ImageSet]:
        """The image set of every source, the labelled first."""
        classes = self.task.classes
        for name, folder in sorted(self.task.folders.items(), key=lambda item: item[0] != "labelled"):
            source = self.declared[name]
            if name not in self._sets or source.per_seed:
                self._sets[name] = source.read(folder, classes, budget=self._budget, seed=seed)
            if not len(self._sets[name]):
                raise DataError(f"{folder} has no face for the source {name}; run the stage that writes it again")
            if name == "labelled":
                refuse_empty_classes(self._sets[name].counts(len(classes)), classes=classes, where=folder)
        return self._sets


def _train(sources: SourceReader, seed: int, key: str, folder: Path, worker: Worker, advance: Advance) -> None:
    task, sets = sources.task, sources.read(seed)
    config, labelled, kept = task.config, sets["labelled"], task.open_store()
    parts = partition(
        labelled.labels.numpy(),
        labelled.subjects if config.by_subject else np.full(len(labelled), "", dtype=object),
        shares={VALIDATION: config.validation},
        seed=seed,
        num_classes=len(task.classes),
    )
    chosen = np.flatnonzero(parts == VALIDATION)
    faces = read_metadata(task.folders["labelled"])
    job = TrainingJob(
        network=config.network.sized(int(faces["crop"])),
        weights=config.weights,
        classes=task.classes,
        seed=seed,
        settings=config.training,
        build=partial(sources.strategy.build, task.options),
        sources=sources.declared,
        about={
            "stage": STAGE,
            "strategy": task.strategy,
            "options": task.options.model_dump(mode="json"),
            "faces": faces,
        },
        data=task.data,
    )
    result = train(
        job,
        {**sets, "labelled": labelled.take(np.flatnonzero(parts == FIT))},
        labelled.take(chosen) if len(chosen) else None,
        Execution(worker, kept.state(STAGE, key), folder, advance),
    )
    if worker.is_leader:
        kept.make(_timing_key(key), lambda path: write_json(path, _timing(result, worker)))


def _timing_key(key: str) -> str:
    return fingerprint("timing", key)


def _timing(result: TrainingResult, worker: Worker) -> dict[str, Any]:
    per_step = result.fitted.seconds / result.fitted.steps
    return {
        "device": worker.device.type,
        "processes": worker.world_size,
        "steps": result.fitted.steps,
        "seconds": result.fitted.seconds,
        "seconds_waited_for_images": result.fitted.waited,
        "seconds_per_step": per_step,
        "steps_per_epoch": result.steps_per_own_epoch,
        "seconds_per_epoch": per_step * result.steps_per_own_epoch,
        "images": result.images,
        "advice": list(result.speed.advice),
    }


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
