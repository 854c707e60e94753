"""Train one model for each of several seeds, and keep each in the store with what its training took.

Seeds are independent: they train in several processes, each on a GPU of its own or on a CPU with the same number of
threads, so that the bytes are those of one after the other. With `parallel: data` all GPUs train one seed after the
other together; sums then depend on their number, and bytes are not promised across it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fer_pipeline.artifacts.faces import read_metadata, read_table
from fer_pipeline.artifacts.split import FIT, HELDOUT, VALIDATION, write_split
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_json
from fer_pipeline.core.fingerprints import MODEL_CODE, code_fingerprint, fingerprint
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import Resources, Settings
from fer_pipeline.networks.devices import resolve_device
from fer_pipeline.networks.weights import WeightSettings, own_side, require_file, require_members, sha256_of
from fer_pipeline.sharding.devices import worker_devices
from fer_pipeline.training.fit import Execution, TrainingJob, TrainingResult, length, train
from fer_pipeline.training.images import MemoryBudget, memory_budget
from fer_pipeline.training.sets import ImageSet, partition
from fer_pipeline.training.settings import ModelSettings
from fer_pipeline.training.shares import Advance, run_shares
from fer_pipeline.training.strategy import load_strategy, strategy_files
from fer_pipeline.training.worker import Worker, group_devices, make_worker, run_group


@dataclass(frozen=True)
class SeedTraining:
    """All that a process needs to train the models of some seeds; picklable. The sets are read once for all seeds."""

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

    def make(
        self, seeds: Mapping[int, str], out: Path, *, usual: Literal["seeds", "data"]
    ) -> tuple[list[int], dict[int, dict[str, Any]]]:
        """Trains the models that the store lacks, and links all into `out`, each as the folder named for its seed.

        Returns the seeds that were trained, and what the training of each seed took, where it is known.
        """
        kept, training, keys = Store(self.store, owner=self.owner), self.config.training, self._keys(seeds)
        missing = [(seed, key) for seed, key in keys.items() if not kept.has(key)]
        if missing:
            require_members(self.config.network)
            for weights in self._weights():
                require_file(weights)
            labels = read_table(self.folders["labelled"], ["label"]).column("label").drop_null().to_numpy()
            estimate = self._estimate_fitted(np.bincount(labels[labels >= 0]))
            total = len(missing) * length(training, max(estimate, 1))[0]
            group, alone = group_devices(self.resources, usual=usual), worker_devices(self.resources)[: len(missing)]
            with progress(self.owner.replace("@", " "), total, "steps") as advance:
                for seed, key in missing if group else ():
                    work = partial(self._train_in_group, seed, key, len(group))
                    run_group(work, group, precision=training.precision, advance=advance)
                if not group:
                    items = [(seed, key, alone[index % len(alone)]) for index, (seed, key) in enumerate(missing)]
                    run_shares(partial(self._train_seeds, len(alone)), items, workers=len(alone), advance=advance)
        others = {seed: _timing_key(key) for seed, key in keys.items()}
        kept.deliver(out, {name: keys[seed] for seed, name in seeds.items()}, others=others.values())
        paths = {seed: kept.shard(key) for seed, key in others.items()}
        return [seed for seed, _ in missing], {seed: read_json(path) for seed, path in paths.items() if path.exists()}

    def _estimate_fitted(self, counts: np.ndarray) -> int:
        """Returns about how many labelled images are trained on, from those of every class."""
        training, share = self.config.training, 1 - sum(self.shares.values())
        if training.balance == "dataset" and counts.any():
            return int(np.count_nonzero(counts)) * (training.balance_per_class or int(share * counts[counts > 0].min()))
        return round(int(counts.sum()) * share)

    def _weights(self) -> list[WeightSettings]:
        choices = (self.config.weights, *vars(self.options).values())
        return [one for one in choices if isinstance(one, WeightSettings)]

    def _keys(self, seeds: Iterable[int]) -> dict[int, str]:
        """Returns the key of each seed's model in the store: settings, data, initial weights and code."""
        weights = [sha256_of(one) for one in self._weights()]
        own = (f"stages/{self.stage}.py", "training", "evaluation/metrics.py")
        code = code_fingerprint(*own, *MODEL_CODE, *strategy_files(load_strategy(self.strategy)))
        parts = (self.stage, code, self.config, self.options, self.strategy, list(self.classes), self.data, weights)
        parts = (*parts, self.split_seed)
        return {seed: fingerprint(*parts, seed) for seed in seeds}

    def _train_seeds(self, processes: int, missing: Sequence[tuple[int, str, str]], advance: Advance) -> None:
        """Trains some seeds (with their keys, all on one device) one after the other."""
        device, sets = missing[0][2], {}
        budget = memory_budget(self.resources, resolve_device(device), processes=processes)
        for seed, key, _ in missing:
            self._train(seed, key, sets, budget, make_worker(device, self.config.training.precision), advance)

    def _train_in_group(self, seed: int, key: str, processes: int, worker: Worker, advance: Advance) -> None:
        budget = memory_budget(self.resources, worker.device, processes=processes)
        self._train(seed, key, {}, budget, worker, advance)

    def _train(
        self, seed: int, key: str, sets: dict[str, ImageSet], budget: MemoryBudget, worker: Worker, advance: Advance
    ) -> None:
        """Trains one seed; of several processes that do so together the leader writes."""

        def work(folder: Path) -> None:
            result = self._fit(seed, sets, budget, Execution(worker, kept.state(self.stage, key), folder, advance))
            if worker.is_leader:
                kept.make(_timing_key(key), lambda path: write_json(path, _timing(result, worker)))

        kept = Store(self.store, owner=self.owner)
        if worker.is_leader:
            kept.make(key, work, folder=True)
        else:
            work(Path())

    def _fit(self, seed: int, sets: dict[str, ImageSet], budget: MemoryBudget, execution: Execution) -> TrainingResult:
        config, strategy = self.config, load_strategy(self.strategy)
        sources = strategy.sources(self.options)
        for name, folder in sorted(self.folders.items(), key=lambda item: item[0] != "labelled"):
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
        labelled = sets["labelled"]
        parts = partition(
            labelled.labels.numpy(),
            labelled.subjects if self.by_subject else np.full(len(labelled), "", dtype=object),
            shares=self.shares,
            seed=self.split_seed,
            num_classes=len(self.classes),
        )
        if HELDOUT in self.shares and execution.worker.is_leader:
            about = {"face_id": labelled.face_id.tolist(), "label": labelled.labels.numpy(), "part": parts.tolist()}
            write_split(execution.folder, **about)
        chosen = np.flatnonzero(parts == VALIDATION)
        faces, options = read_metadata(self.folders["labelled"]), self.options.model_dump(mode="json")
        job = TrainingJob(
            network=config.network.sized(own_side(config.weights) or int(faces["crop"])),
            weights=config.weights,
            classes=self.classes,
            seed=seed,
            settings=config.training,
            build=partial(strategy.build, self.options),
            sources=sources,
            about={"stage": self.stage, "strategy": self.strategy, "options": options, "faces": faces},
            data=self.data,
        )
        fit_part = labelled.take(np.flatnonzero(parts == FIT))
        return train(job, {**sets, "labelled": fit_part}, labelled.take(chosen) if len(chosen) else None, execution)


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
    }
