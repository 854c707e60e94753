"""Train primitive: the anchor's train split in; the primitive learner and the parts of the anchor out.

Source: OS-FER (arXiv:2005.08551), section 3.1, eq. 1. Difference: two parts are set aside by seed, whole subjects at a
time. `validation` chooses the epoch; `heldout` is neither trained on nor in the centroids, so that the precision of
mining can be estimated on it. Which face is in which part stands in `split.parquet` beside the checkpoint.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from fer_pipeline.artifacts.faces import read_about, read_table, write_parquet
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.files import file_sha256, fresh_folder
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import STORE, ProjectSettings, Resources, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.networks.cards import read_card
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.strategies import supervised
from fer_pipeline.training.advice import Speed
from fer_pipeline.training.fabric import Place, make_place
from fer_pipeline.training.fit import length
from fer_pipeline.training.job import Start, train
from fer_pipeline.training.partition import FIT, partition
from fer_pipeline.training.ranks import launch, together
from fer_pipeline.training.records import read_history
from fer_pipeline.training.room import room_of
from fer_pipeline.training.sets import ImageSet, folder_sha256, read_images, refuse_empty_classes
from fer_pipeline.training.settings import TrainingSettings

VERSION = 1
VALIDATION, HELDOUT = "validation", "heldout"
SPLIT = "split.parquet"


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


def run(config: Config, project: ProjectSettings, *, faces: Path, out: Path, store: Path = STORE) -> Summary:
    """Train the primitive learner on the anchor.

    Args:
        config: The section `train_primitive`.
        project: What all stages share.
        faces: The anchor's train split of aligned faces.
        out: Where checkpoint, history and `split.parquet` are written.
        store: Where finished trainings and the state of an unfinished one are kept.
    """
    classes, seed, resources = project.classes, project.seeds[0], project.resources
    weights_sha256 = file_sha256(config.weights.path) if config.weights and config.weights.path.is_file() else None
    data = {"faces": folder_sha256(faces)}
    key = fingerprint("train_primitive", VERSION, config, list(classes), seed, data, weights_sha256)
    shelf = Store(store, owner="train_primitive")
    speed: list[Speed] = []
    reused = shelf.make_folder(
        key,
        lambda folder: speed.append(
            _make(config, faces, tuple(classes), seed, data, folder, shelf.state("train_primitive", key), resources)
        ),
    )
    fresh_folder(out)
    shelf.link(key, out)
    shelf.drop_state("train_primitive", key)
    shelf.used([key])
    return _summary(config, faces, tuple(classes), out, speed[0] if not reused else None)


def _make(
    config: Config,
    faces: Path,
    classes: tuple[str, ...],
    seed: int,
    data: dict[str, str],
    folder: Path,
    state: Path,
    resources: Resources,
) -> Speed:
    images = read_images(faces, classes=classes, room=None)
    refuse_empty_classes(images.counts(len(classes)), classes=classes, where=faces)
    parts = divide(images, config.split, seed=seed, num_classes=len(classes))
    write_split(folder / SPLIT, images, parts)
    fit_images = images.take(np.flatnonzero(parts == FIT))
    refuse_empty_classes(fit_images.counts(len(classes)), classes=classes, where=f"the part of {faces} to train on")
    total, _ = length(config.training, len(fit_images))
    devices = together(resources, usual="data")
    work = partial(_train, config, faces, classes, seed, data, folder, state, resources, max(len(devices), 1), parts)
    precision = config.training.precision
    with progress("train_primitive", total, "steps") as advance:
        if devices:
            return launch(work, devices, precision=precision, advance=advance)
        return work(make_place(resources.device, precision), advance)


def _train(
    config: Config,
    faces: Path,
    classes: tuple[str, ...],
    seed: int,
    data: dict[str, str],
    folder: Path,
    state: Path,
    resources: Resources,
    processes: int,
    parts: np.ndarray,
    place: Place,
    advance: Callable[[int], None],
) -> Speed:
    room = room_of(resources, place.device, processes=processes)
    images = read_images(faces, classes=classes, room=room)
    chosen = np.flatnonzero(parts == VALIDATION)
    made = read_about(faces)
    trained = train(
        Start(config.network.sized(int(made["crop"])), config.weights, classes, seed),
        lambda ingredients: supervised.build(config.options, ingredients),
        {"labelled": images.take(np.flatnonzero(parts == FIT))},
        images.take(chosen) if len(chosen) else None,
        settings=config.training,
        device=place,
        state=state,
        folder=folder,
        about={
            "stage": "train_primitive",
            "strategy": "supervised",
            "options": config.options.model_dump(),
            "faces": made,
        },
        data=data,
        advance=advance,
    )
    return trained.speed


def divide(images: ImageSet, split: SplitSettings, *, seed: int, num_classes: int) -> np.ndarray:
    """The part of every labelled face: `fit`, `validation` or `heldout`."""
    return partition(
        images.labels.numpy(),
        images.subjects if split.by_subject else np.full(len(images), "", dtype=object),
        shares={VALIDATION: split.validation, HELDOUT: split.heldout},
        seed=seed,
        num_classes=num_classes,
    )


def write_split(path: Path, images: ImageSet, parts: np.ndarray) -> None:
    """Which face is in which part, in the order of the shards."""
    table = pa.table(
        {
            "face_id": pa.array(images.face_id.tolist(), pa.string()),
            "label": pa.array(images.labels.numpy(), pa.int64()),
            "part": pa.array(parts.tolist(), pa.string()),
        }
    )
    write_parquet(path, table)


def _summary(config: Config, faces: Path, classes: tuple[str, ...], out: Path, speed: Speed | None) -> Summary:
    split = pq.read_table(out / SPLIT)
    parts, labels = np.array(split.column("part").to_pylist()), split.column("label").to_numpy()
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
    line += f"; {speed.words}" if speed else " (from the store)"
    return Summary("train_primitive", line, counts, (*warnings, *(speed.advice if speed else ())))
