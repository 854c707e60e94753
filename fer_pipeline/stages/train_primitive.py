"""Train the primitive learner on the anchor's train split, and say which faces it was trained on.

Source: OS-FER (arXiv:2005.08551), section 3.1, eq. 1. Difference: two parts are set aside by seed, whole subjects at a
time. `validation` chooses the epoch; `heldout` is neither trained on nor in the centroids, so that the precision of
mining can be estimated on it. Which face is in which part stands in `split.parquet` beside the checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from fer_pipeline.artifacts.faces import read_metadata, read_table
from fer_pipeline.artifacts.history import read_history
from fer_pipeline.artifacts.split import FIT, HELDOUT, VALIDATION, read_split, write_split
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.files import file_sha256, fresh_folder
from fer_pipeline.core.fingerprints import PACKAGE, code_fingerprint, fingerprint
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import STORE, ProjectSettings, Resources, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.strategies import supervised
from fer_pipeline.training.fit import Execution, Speed, TrainingJob, length, train
from fer_pipeline.training.images import memory_budget
from fer_pipeline.training.sets import ImageSet, folder_sha256, partition, read_images, refuse_empty_classes
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.worker import Worker, group_devices, make_worker, run_group

STAGE = "train_primitive"
# What the model's bytes depend on: changed code trains anew.
CODE = (
    "stages/train_primitive.py",
    "strategies/supervised.py",
    "training",
    "networks",
    "core/seeds.py",
    "artifacts/arrow.py",
    "artifacts/faces.py",
    "artifacts/history.py",
    "artifacts/split.py",
    "evaluation/metrics.py",
)


class SplitSettings(Settings):
    """Shares of the anchor's train split that are not trained on."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    by_subject: bool = True  # false: pictures of one person may be in two parts

    @model_validator(mode="after")
    def _something_is_left(self) -> "SplitSettings":
        if self.validation + self.heldout >= 1:
            raise ValueError(f"validation and heldout leave nothing to train on ({self.validation} + {self.heldout})")
        return self


class Config(Settings):
    """The section `train_primitive` of params.yaml."""

    network: NetworkSettings = NetworkSettings()
    weights: WeightSettings | None = None  # null: drawn from the seed
    training: TrainingSettings = TrainingSettings()
    split: SplitSettings = SplitSettings()
    options: supervised.Options = supervised.Options()

    @model_validator(mode="after")
    def _best_needs_validation(self) -> "Config":
        if self.training.select == "best" and self.split.validation == 0:
            raise ValueError("training.select: best needs split.validation above 0; or set training.select: last")
        return self


@dataclass(frozen=True)
class Task:
    """All that a process needs to train the primitive learner; picklable."""

    config: Config
    faces: Path
    classes: tuple[str, ...]
    seed: int
    data: dict[str, str]  # hash of the faces
    parts: np.ndarray  # of every labelled face
    folder: Path
    state: Path
    resources: Resources
    processes: int  # that train together


def run(config: Config, project: ProjectSettings, *, faces: Path, out: Path, store: Path = STORE) -> Summary:
    """Train the primitive learner on the anchor.

    Args:
        config: The section `train_primitive`.
        project: What all stages share.
        faces: The anchor's train split of aligned faces.
        out: Where checkpoint, history and `split.parquet` are written.
        store: Where finished trainings and the state of an unfinished one are kept.
    """
    classes, seed = project.classes, project.seeds[0]
    weights_sha256 = file_sha256(config.weights.path) if config.weights and config.weights.path.is_file() else None
    data = {"faces": folder_sha256(faces)}
    code = code_fingerprint(*(PACKAGE / path for path in CODE))
    key = fingerprint(STAGE, code, config, list(classes), seed, data, weights_sha256)
    kept = Store(store, owner=STAGE)
    speed: list[Speed] = []

    def make(folder: Path) -> None:
        images = read_images(faces, classes=classes, budget=None)
        refuse_empty_classes(images.counts(len(classes)), classes=classes, where=faces)
        parts = divide(images, config.split, seed=seed, num_classes=len(classes))
        write_split(folder, face_id=images.face_id.tolist(), label=images.labels.numpy(), part=parts.tolist())
        fit_images = images.take(np.flatnonzero(parts == FIT))
        refuse_empty_classes(fit_images.counts(len(classes)), classes=classes, where=f"the part of {faces} to train on")
        group = group_devices(project.resources, usual="data")
        task = Task(
            config=config,
            faces=faces,
            classes=classes,
            seed=seed,
            data=data,
            parts=parts,
            folder=folder,
            state=kept.state(STAGE, key),
            resources=project.resources,
            processes=max(len(group), 1),
        )
        precision = config.training.precision
        with progress(STAGE, length(config.training, len(fit_images))[0], "steps") as advance:
            if group:
                speed.append(run_group(partial(_train, task), group, precision=precision, advance=advance))
            else:
                speed.append(_train(task, make_worker(project.resources.device, precision), advance))

    kept.make_folder(key, make)
    fresh_folder(out)
    kept.link(key, out)
    kept.drop_state(STAGE, key)
    kept.record_run([key])
    return _summary(config, faces, classes, out, speed[0] if speed else None)


def _train(task: Task, worker: Worker, advance: Callable[[int], None]) -> Speed:
    config = task.config
    budget = memory_budget(task.resources, worker.device, processes=task.processes)
    images = read_images(task.faces, classes=task.classes, budget=budget)
    chosen = np.flatnonzero(task.parts == VALIDATION)
    faces = read_metadata(task.faces)
    job = TrainingJob(
        network=config.network.sized(int(faces["crop"])),
        weights=config.weights,
        classes=task.classes,
        seed=task.seed,
        settings=config.training,
        build=partial(supervised.build, config.options),
        sources=supervised.sources(config.options),
        about={"stage": STAGE, "strategy": "supervised", "options": config.options.model_dump(), "faces": faces},
        data=task.data,
    )
    result = train(
        job,
        {"labelled": images.take(np.flatnonzero(task.parts == FIT))},
        images.take(chosen) if len(chosen) else None,
        Execution(worker, task.state, task.folder, advance),
    )
    return result.speed


def divide(images: ImageSet, split: SplitSettings, *, seed: int, num_classes: int) -> np.ndarray:
    """The part of every labelled face: `fit`, `validation` or `heldout`."""
    return partition(
        images.labels.numpy(),
        images.subjects if split.by_subject else np.full(len(images), "", dtype=object),
        shares={VALIDATION: split.validation, HELDOUT: split.heldout},
        seed=seed,
        num_classes=num_classes,
    )


def _summary(config: Config, faces: Path, classes: tuple[str, ...], out: Path, speed: Speed | None) -> Summary:
    split = read_split(out)
    parts, labels = split.part, split.label
    unlabelled = read_table(faces, ["label"]).column("label").null_count
    training, history = read_card(out).training, read_history(out)
    chosen = history[training["chosen_epoch"] - 1]
    counts: dict[str, int | float] = {part: int((parts == part).sum()) for part in (FIT, VALIDATION, HELDOUT)}
    counts |= {"unlabelled": unlabelled, "steps": training["steps"], "chosen_epoch": training["chosen_epoch"]}
    counts |= {name: value for name, value in chosen.items() if name.startswith("validation_")}
    warnings = list(training["notes"])
    for part in (VALIDATION, HELDOUT):
        missing = sorted(set(range(len(classes))) - set(labels[parts == part].tolist()))
        if missing and counts[part]:
            names = ", ".join(classes[index] for index in missing)
            warnings.append(f"the {part} part has no face of {names}; its figures say nothing of them")
    if unlabelled:
        warnings.append(f"{unlabelled:,} faces in {faces} have no label and are not used")
    line = (
        f"{counts[FIT]:,} faces trained on, {counts[VALIDATION]:,} to validate, {counts[HELDOUT]:,} held out; "
        f"epoch {counts['chosen_epoch']} of {len(history)}"
    )
    if "validation_mean_class_accuracy" in counts:
        line += f", validation mean class accuracy {counts['validation_mean_class_accuracy']:.3f}"
    line += f"; weights: {training['weights']}" if training["weights"] else ""
    line += f"; {speed.line}" if speed else " (from the store)"
    return Summary(STAGE, line, counts, (*warnings, *(speed.advice if speed else ())))
