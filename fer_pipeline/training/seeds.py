"""Train one model for each of several seeds, and keep each in the store with what its training took.

Seeds are independent: they train in several processes, each on a GPU of its own or on a CPU with the same number of
threads, so that the bytes are those of one after the other. With `parallel: data` all GPUs train one seed after the
other together; sums then depend on their number, and bytes are not promised across it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool

from fer_pipeline.artifacts.faces import read_metadata, read_table
from fer_pipeline.artifacts.seed_folders import seed_folders
from fer_pipeline.artifacts.split import FIT, HELDOUT, VALIDATION, write_split
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_json
from fer_pipeline.core.fingerprints import MODEL_CODE, code_fingerprint, fingerprint
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources, Seen, Settings, pass_on, values_in
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.pretrained import seen_by_weights
from fer_pipeline.networks.weights import WeightSettings, own_side, require_file, require_members, sha256_of
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.fit import Execution, TrainingJob, TrainingResult, length, train
from fer_pipeline.training.images import MemoryBudget, memory_budget
from fer_pipeline.training.label_noise import add_noise, describe_noise
from fer_pipeline.training.sets import ImageSet, count_labelled, partition, read_images
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.shares import Advance, run_shares
from fer_pipeline.training.sources import REVIEWED, Checkpoints, Reviewed, sources_of
from fer_pipeline.training.strategy import draws, learns, load_strategy, strategy_files
from fer_pipeline.training.worker import Worker, group_devices, make_worker, run_group


@dataclass(frozen=True)
class SeedTraining:
    """All that a process needs to train a model of any seed; picklable. The sets are read once for all seeds."""

    owner: str  # of the models in the store
    config: ModelSettings
    strategy: str
    options: Settings
    folders: Mapping[str, Path]  # of the sources
    shares: Mapping[str, float]  # of the labelled set that are not trained on, by part
    by_subject: bool
    split_seed: int  # of the parts, the same for all seeds
    classes: tuple[str, ...]
    data: dict[str, str]  # hashes of the sources
    store: Path
    resources: Resources

    @property
    def stage(self) -> str:
        """The stage that trains."""
        return self.owner.partition("@")[0]

    @property
    def streams(self) -> dict[str, Path]:
        """The folders of the sources that give images."""
        declared, others = sources_of(load_strategy(self.strategy), self.options), (Checkpoints, Reviewed)
        return {name: path for name, path in self.folders.items() if not isinstance(declared[name], others)}

    def estimate_steps(self) -> int:
        """Returns about how many steps a training takes, from its settings and the labels alone."""
        labels = read_table(self.folders["labelled"], ["label"]).column("label").drop_null().to_numpy()
        counts = np.bincount(labels[labels >= 0])
        training, share = self.config.training, 1 - sum(self.shares.values())
        fitted = round(int(counts.sum()) * share)
        if training.balance == "dataset" and counts.any():
            each = training.balance_per_class or int(share * counts[counts > 0].min())
            fitted = int(np.count_nonzero(counts)) * each
        return length(training, max(fitted, 1))[0]

    def outside_weights(self) -> list[WeightSettings]:
        return [*values_in([self.config.weights, self.options], WeightSettings)]

    @property
    def seen(self) -> dict[str, Seen]:
        """What registered weights were trained on that are behind the models by their start, teachers and sources."""
        sources, start = sources_of(load_strategy(self.strategy), self.options), self.config.weights
        teachers = values_in(self.options, WeightSettings)
        parts = [seen_by_weights(start.name, start.path)] if start else []
        parts += [pass_on(seen_by_weights(one.name, one.path), "its teacher") for one in teachers]
        parts += [sources[name].seen(folder) for name, folder in self.folders.items()]
        return {name: one for part in reversed(parts) for name, one in part.items()}

    def key(self, seed: int) -> str:
        """Returns the key of a seed's model in the store: settings, data, initial weights and code."""
        weights = [sha256_of(one) for one in self.outside_weights()]
        own = (f"stages/{self.stage}.py", "training", "evaluation/metrics.py")
        code = code_fingerprint(*own, *MODEL_CODE, *strategy_files(load_strategy(self.strategy)))
        parts = (self.stage, code, self.config, self.options, self.strategy, list(self.classes), self.data, weights)
        parts = (*parts, self.split_seed, *filter(None, [self.seen]))
        return fingerprint(*parts, seed) if draws(load_strategy(self.strategy)) else fingerprint(*parts)

    def fitted_labels(self) -> dict[str, str]:
        """Returns the label that each labelled face is learned under, by its identifier; no image is read."""
        reviewed = self.folders.get(REVIEWED)
        labelled = read_images(self.folders["labelled"], classes=self.classes, budget=None, also=reviewed)
        labelled, parts, _ = self._divide(labelled)
        fitted = labelled.take(np.flatnonzero(parts == FIT))
        names = (self.classes[label] for label in fitted.labels.tolist())
        return dict(zip(fitted.face_id.tolist(), names, strict=True))

    def train_in_group(self, seed: int, key: str, processes: int, worker: Worker, advance: Advance) -> None:
        budget = memory_budget(self.resources, worker.device, processes=processes)
        self.train_seed(seed, key, {}, budget, worker, advance)

    def train_seed(
        self, seed: int, key: str, sets: dict[str, ImageSet], budget: MemoryBudget, worker: Worker, advance: Advance
    ) -> None:
        """Trains one seed; of several processes that do so together the leader writes."""

        def work(folder: Path) -> None:
            state = kept.state(self.stage, key)
            result = self._fit(seed, sets, budget, Execution(worker, state, folder, advance, self.estimate_steps()))
            if worker.is_leader:
                kept.make(_timing_key(key), lambda path: write_json(path, _timing(result, worker)))

        kept = Store(self.store, owner=self.owner)
        if worker.is_leader:
            kept.make(key, work, folder=True)
        else:
            work(Path())

    def _divide(self, labelled: ImageSet) -> tuple[ImageSet, np.ndarray, Bool[np.ndarray, " n"]]:
        """Returns the labelled set, with noise where the settings want it, the part of each face, and what is spared.

        The judged faces are its last ones.
        """
        reviewed = self.folders.get(REVIEWED)
        judged = count_labelled(reviewed) if reviewed else 0
        own = labelled.take(np.arange(len(labelled) - judged))
        parts = partition(  # by the true labels: what is set aside does not depend on the noise
            own.labels.numpy(),
            own.subjects if self.by_subject else np.full(len(own), "", dtype=object),
            shares=self.shares,
            seed=self.split_seed,
            num_classes=len(self.classes),
        )
        parts = np.concatenate([parts, np.full(judged, FIT, dtype=object)])
        # A precision that is measured on wrong labels would be none; and judged faces are right by definition.
        spared = (parts == HELDOUT) | (np.arange(len(parts)) >= len(own))
        if (noise := self.config.label_noise) is not None:
            # Drawn without the judged ones, so that the wrong labels are those of a training without them.
            noisy = add_noise(own, noise, self.classes, spared=spared[: len(own)])
            labels = torch.cat([noisy.labels, labelled.labels[len(own) :]])
            labelled = replace(labelled, labels=labels, truth=labelled.labels)
        return labelled, parts, spared

    def _fit(self, seed: int, sets: dict[str, ImageSet], budget: MemoryBudget, execution: Execution) -> TrainingResult:
        config, strategy = self.config, load_strategy(self.strategy)
        sources = strategy.sources(self.options)
        streams, reviewed = self.streams, self.folders.get(REVIEWED)
        if reviewed:
            sources["labelled"] = replace(sources["labelled"], also=reviewed)
        for name, folder in sorted(streams.items(), key=lambda item: item[0] != "labelled"):
            if name not in sets or sources[name].per_seed:
                sets[name] = sources[name].read(folder, self.classes, budget=budget, seed=seed)
            if not len(sets[name]):
                raise DataError(f"{folder} has no face for the source {name}; run the stage that writes it again")
            counts = sets[name].counts(len(self.classes))
            if name == "labelled" and not counts.all():
                empty = ", ".join(one for one, count in zip(self.classes, counts, strict=True) if count == 0)
                raise DataError(
                    f"{folder} has no face of the class {empty}; take it out of classes or map a label to it"
                )
        labelled, parts, spared = self._divide(sets["labelled"])
        about = {"stage": self.stage, "strategy": self.strategy, "options": self.options.model_dump(mode="json")}
        if (noise := config.label_noise) is not None:
            about["label_noise"] = describe_noise(labelled.take(np.flatnonzero(~spared)), noise, self.classes)
        if reviewed:
            about["reviewed"] = count_labelled(reviewed)
        if HELDOUT in self.shares and execution.worker.is_leader:
            columns = {"face_id": labelled.face_id.tolist(), "label": labelled.labels.numpy(), "part": parts.tolist()}
            write_split(execution.folder, **columns)
        chosen = np.flatnonzero(parts == VALIDATION)
        faces = read_metadata(self.folders["labelled"])
        job = TrainingJob(
            network=config.network.sized(own_side(config.weights) or int(faces["crop"])),
            weights=config.weights,
            classes=self.classes,
            seed=seed if draws(strategy) else self.split_seed,
            settings=config.training,
            build=partial(strategy.build, self.options),
            sources=sources,
            about=about
            | {"faces": faces}
            | ({} if learns(strategy) else {"learns": False})
            | ({} if draws(strategy) else {"seed": None}),
            data=self.data,
            checkpoints={name: path for name, path in self.folders.items() if name not in (*streams, REVIEWED)},
            seen=self.seen,
        )
        fit_part = labelled.take(np.flatnonzero(parts == FIT))
        return train(job, {**sets, "labelled": fit_part}, labelled.take(chosen) if len(chosen) else None, execution)


def make_models(
    models: Mapping[str, tuple[SeedTraining, int]],
    out: Path,
    *,
    usual: Literal["seeds", "data"],
    seeds: Sequence[int] = (),
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Trains the models that the store lacks, and links all into `out`, each as the folder of its name.

    A model is given as its training and its seed; all trainings have one owner, one labelled set and one machine. With
    `seeds`, which have a folder each, `out` says so. Returns the names of the models that were trained, and by name
    what the training took, where it is known.
    """
    first = next(iter(models.values()))[0]
    kept = Store(first.store, owner=first.owner)
    keys = {name: training.key(seed) for name, (training, seed) in models.items()}
    # Of equal models the first is trained.
    lacking = {key: name for name, key in reversed(keys.items()) if not kept.has(key)}
    missing = {name: (*models[name], key) for name, key in keys.items() if lacking.get(key) == name}
    if missing:
        require_members(first.config.network)
        for weights in first.outside_weights():
            require_file(weights)
        total = sum(training.estimate_steps() for training, _, _ in missing.values())
        resources = first.resources
        group, alone = group_devices(resources, usual=usual), worker_devices(resources)[: len(missing)]
        with progress(first.owner.replace("@", " "), total, "steps") as advance:
            for training, seed, key in missing.values() if group else ():
                work = partial(training.train_in_group, seed, key, len(group))
                run_group(work, group, precision=training.config.training.precision, advance=advance)
            if not group:
                items = [(*one, alone[index % len(alone)]) for index, one in enumerate(missing.values())]
                run_shares(partial(_train_share, len(alone)), items, workers=len(alone), advance=advance)
    others = {name: _timing_key(key) for name, key in keys.items()}
    with seed_folders(out, seeds) as folder:
        kept.deliver(folder, keys, others=others.values())
    paths = {name: kept.shard(key) for name, key in others.items()}
    return [*missing], {name: read_json(path) for name, path in paths.items() if path.exists()}


def _train_share(processes: int, missing: Sequence[tuple[SeedTraining, int, str, str]], advance: Advance) -> None:
    """Trains some models (each by its training, with its seed and key, all on one device) one after the other."""
    read, device = missing[0][0], missing[0][3]
    sets: dict[str, ImageSet] = {}
    whole = memory_budget(read.resources, resolve_device(device), processes=processes)
    budget = replace(whole)
    for training, seed, key, _ in missing:
        if training.streams != read.streams:
            read, budget = training, replace(whole)
            sets.clear()
        training.train_seed(seed, key, sets, budget, make_worker(device, training.config.training.precision), advance)


def _timing_key(key: str) -> str:
    """Returns the key of what the training of a model took."""
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
        "times_seen": result.times_seen,
        "stopped_rising": result.fitted.stopped_rising,
        "advice": list(result.advice),
        "peak_memory_bytes": worker.peak_memory(),
    }
