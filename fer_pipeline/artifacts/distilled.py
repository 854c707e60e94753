"""Read and write distilled sets: synthetic images with labels and step sizes, one folder a set.

`data/distilled/<name>/distilled.safetensors` holds `images` f32 [steps n 3 h w] in the network's *normalised* input
space, `labels` i64 [steps n] and `step_sizes` f32 [steps]; `card.json` says for which classes and which preprocessing.
Beside them: `saved/epoch-*.safetensors` (the images of earlier outer epochs), `history.csv`, `probe.json`, `previews/`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage, write_bytes, write_json

ARRAYS = "distilled.safetensors"
CARD = "card.json"
SAVED = re.compile(r"epoch-(\d+)\.safetensors")
ARRAY_NAMES = ("images", "labels", "step_sizes")


@dataclass(frozen=True)
class DistilledSet:
    """A distilled set. `preprocessing` is the dumped settings that turn a crop into the images' space."""

    images: Float32[np.ndarray, "steps n 3 h w"]
    labels: Int64[np.ndarray, "steps n"]
    step_sizes: Float32[np.ndarray, " steps"]
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]

    def flat(self) -> tuple[Float32[np.ndarray, "k 3 h w"], Int64[np.ndarray, " k"]]:
        """Returns all images with their labels, without the order of steps: what the final training uses."""
        return self.images.reshape(-1, *self.images.shape[2:]), self.labels.reshape(-1)


def write_distilled(folder: Path, distilled: DistilledSet, about: Mapping[str, Any]) -> None:
    """Writes arrays and card; `about` (settings, hashes of source and model) goes into the card beside the rest."""
    steps, count, _, height, width = distilled.images.shape
    if not np.isfinite(distilled.images).all():
        raise DataError("a distilled image is not finite; lower distill.learning_rate or distill.step_size")
    shape = {"steps": steps, "images_per_step": count, "height": height, "width": width}
    spaces = {"classes": list(distilled.classes), "preprocessing": dict(distilled.preprocessing)}
    write_arrays(folder / ARRAYS, {name: getattr(distilled, name) for name in ARRAY_NAMES})
    write_json(folder / CARD, {**about, **spaces, **shape})


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as one safetensors file, whole or not at all."""
    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of one safetensors file; a missing or damaged file is a DataError."""
    missing, remedy = "run: dvc repro distill", "remove its folder and run: dvc repro distill"
    with refuse_damage(path, "is damaged", remedy, missing=missing, kind=SafetensorError):
        return load_file(path)


def distilled_folders(folder: Path) -> list[Path]:
    """Returns the folder itself where it is a distilled set, else its subfolders that are, by name."""
    if (folder / CARD).exists():
        return [folder]
    folders = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    if not folders:
        raise DataError(f"no distilled set in {folder} (no {CARD}, nor in its subfolders); run: dvc repro distill")
    return folders


def read_distilled(folder: Path, *, classes: Sequence[str] | None = None) -> DistilledSet:
    """Reads one distilled set, or joins those of a parent folder as more steps; sets that differ are a DataError."""
    parts = [_read_one(path) for path in distilled_folders(folder)]
    first = parts[0]
    if classes is not None and first.classes != tuple(classes):
        raise DataError(
            f"{folder} was distilled for the classes {list(first.classes)}, expected {list(classes)}; distil anew"
        )
    for part in parts[1:]:
        for what, found, expected in (
            ("classes", part.classes, first.classes),
            ("preprocessing", part.preprocessing, first.preprocessing),
            ("images per step and size", part.images.shape[1:], first.images.shape[1:]),
        ):
            if found != expected:
                raise DataError(
                    f"the distilled sets in {folder} differ in {what} ({found} and {expected}); use one at a time"
                )
    return replace(first, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAY_NAMES})


def _read_one(folder: Path) -> DistilledSet:
    card = read_json(folder / CARD)
    arrays = read_arrays(folder / ARRAYS)
    if missing := {*ARRAY_NAMES} - set(arrays):
        raise DataError(f"{folder / ARRAYS} lacks {sorted(missing)}; remove the folder and run: dvc repro distill")
    chosen = {name: arrays[name] for name in ARRAY_NAMES}
    return DistilledSet(**chosen, classes=tuple(card["classes"]), preprocessing=card["preprocessing"])


def saved_name(epoch: int) -> str:
    """Returns the file name of the images after an outer epoch."""
    return f"epoch-{epoch:04d}.safetensors"


def read_saved(folder: Path) -> dict[int, Float32[np.ndarray, "steps n 3 h w"]]:
    """Reads the saved images under `folder / "saved"` by outer epoch, in order."""
    matches = {path: SAVED.fullmatch(path.name) for path in folder.glob("saved/epoch-*.safetensors")}
    epochs = {int(match.group(1)): path for path, match in matches.items() if match}
    return {epoch: read_arrays(path)["images"] for epoch, path in sorted(epochs.items())}
