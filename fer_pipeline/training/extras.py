"""What a recipe uses beside the labelled set: a kind of use and a folder in, the streams' image sets out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from fer_pipeline.artifacts.distilled import ARRAYS, CARD, distilled_folders, read_distilled
from fer_pipeline.artifacts.faces import read_classes, read_table, shard_paths
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.seeds import derive
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.room import Room
from fer_pipeline.training.sets import ImageSet, folder_sha256, held_set, read_images
from fer_pipeline.training.streamed import Streamed, read_groups

Use = Literal["labelled", "mined", "random", "distilled", "random_real"]


@dataclass(frozen=True)
class Extra:
    """The sets by stream, and the preprocessing that distilled images are in."""

    sets: dict[str, ImageSet]
    origin: Preprocessing | None = None

    def fitted(self, preprocessing: Preprocessing) -> dict[str, ImageSet]:
        """The sets with distilled images as inputs of a network with `preprocessing`."""
        if self.origin is None:
            return self.sets
        origin = self.origin
        return {
            name: images.holding(preprocessing.convert(images.all_pixels(), origin)) if images.prepared else images
            for name, images in self.sets.items()
        }


def class_counts(use: Use, folder: Path, *, classes: Sequence[str]) -> Int64[np.ndarray, " c"] | None:
    """Images of every class, without decoding one; None where nothing is used."""
    if use == "labelled":
        return None
    if use == "distilled":
        labels = read_distilled(folder, classes=classes).labels.reshape(-1)
    else:
        found = read_classes(folder)
        if found != tuple(classes):
            raise DataError(
                f"{folder} has the classes {', '.join(found)}, expected {', '.join(classes)} in this order; "
                "run the stage that writes it again"
            )
        labels = read_table(folder, ["pseudo_label"]).column("pseudo_label").to_numpy()
    return np.bincount(labels, minlength=len(classes)).astype(np.int64)


def read_extra(use: Use, folder: Path, *, classes: Sequence[str], real_per_class: int, seed: int, room: Room) -> Extra:
    """The sets of one recipe; only `random_real` depends on the seed."""
    if use == "labelled":
        return Extra({})
    if use == "distilled":
        return _distilled(folder, classes)
    if use == "random_real":
        return Extra({"distilled": _random_real(folder, classes, per_class=real_per_class, seed=seed)})
    return Extra({"auxiliary": read_images(folder, classes=classes, room=room, label="pseudo_label")})


def _distilled(folder: Path, classes: Sequence[str]) -> Extra:
    found = read_distilled(folder, classes=classes)
    images, labels = found.flat()
    names = np.array([f"distilled/{index}" for index in range(len(labels))], dtype=object)
    nobody = np.full(len(labels), "", dtype=object)
    made = held_set(torch.from_numpy(images), torch.from_numpy(labels), names, nobody)
    return Extra({"distilled": made}, Preprocessing.model_validate(dict(found.preprocessing)))


def _random_real(folder: Path, classes: Sequence[str], *, per_class: int, seed: int) -> ImageSet:
    table = read_table(folder, ["face_id", "pseudo_label", "subject"])
    labels = table.column("pseudo_label").to_numpy()
    random = np.random.default_rng(derive(seed, "random_real"))
    members = [np.flatnonzero(labels == index) for index in range(len(classes))]
    rows = np.concatenate([random.permutation(own)[:per_class] for own in members])
    chosen = table.take(rows)
    return held_set(
        Streamed(read_groups(shard_paths(folder)), keep=0, threads=1).take(rows),
        torch.from_numpy(labels[rows]),
        np.array(chosen.column("face_id").to_pylist(), dtype=object),
        np.array([subject or "" for subject in chosen.column("subject").to_pylist()], dtype=object),
    )


def extra_sha256(use: Use, folder: Path) -> str:
    """A hash of what a recipe uses."""
    if use == "distilled":
        paths = [path / name for path in distilled_folders(folder) for name in (ARRAYS, CARD)]
        return fingerprint([[str(path.relative_to(folder)), file_sha256(path)] for path in paths])
    return folder_sha256(folder)
