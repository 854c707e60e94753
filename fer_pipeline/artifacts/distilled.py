"""Distilled sets on disk: synthetic images, labels and step sizes in, one folder out, and back; one folder or several.

`data/distilled/<name>/distilled.safetensors` holds `images` f32 [steps n 3 h w] in the network's *normalised* input
space, `labels` i64 [steps n] and `step_sizes` f32 [steps]; `card.json` says for which classes and which preprocessing.
Beside them: `saved/epoch-*.safetensors` (the images of earlier outer epochs), `history.csv`, `probe.json`, `previews/`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_bytes, write_json

ARRAYS = "distilled.safetensors"
CARD = "card.json"
SAVED = re.compile(r"epoch-(\d+)\.safetensors")


@dataclass(frozen=True)
class Distilled:
    """A distilled set. `preprocessing` is the dumped settings that turn a crop into the images' space."""

    images: Float32[np.ndarray, "steps n 3 h w"]
    labels: Int64[np.ndarray, "steps n"]
    step_sizes: Float32[np.ndarray, " steps"]
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]

    def flat(self) -> tuple[Float32[np.ndarray, "k 3 h w"], Int64[np.ndarray, " k"]]:
        """All images with their labels, without the order of steps: what the final training uses."""
        return self.images.reshape(-1, *self.images.shape[2:]), self.labels.reshape(-1)


def write_distilled(folder: Path, distilled: Distilled, about: Mapping[str, Any]) -> None:
    """Writes arrays and card; `about` (settings, hashes of source and model) goes into the card beside the rest."""
    steps, count, _, height, width = distilled.images.shape
    if not np.isfinite(distilled.images).all():
        raise DataError("a distilled image is not finite; lower distill.learning_rate or distill.step_size")
    card = {
        **about,
        "classes": list(distilled.classes),
        "preprocessing": dict(distilled.preprocessing),
        "steps": steps,
        "images_per_step": count,
        "height": height,
        "width": width,
    }
    arrays = {"images": distilled.images, "labels": distilled.labels, "step_sizes": distilled.step_sizes}
    write_arrays(folder / ARRAYS, arrays)
    write_json(folder / CARD, card)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Named arrays as one safetensors file, whole or not at all."""
    write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one safetensors file; a missing or damaged file is a DataError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run: dvc repro distill") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); remove its folder and run: dvc repro distill") from None


def distilled_folders(folder: Path) -> list[Path]:
    """The folder itself where it is a distilled set, else its subfolders that are, by name."""
    if (folder / CARD).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    if not found:
        raise DataError(f"no distilled set in {folder} (no {CARD}, nor in its subfolders); run: dvc repro distill")
    return found


def read_distilled(folder: Path, *, classes: Sequence[str] | None = None) -> Distilled:
    """One distilled set, or all those of a parent folder one after the other as more steps."""
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
    return Distilled(
        images=np.concatenate([part.images for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        step_sizes=np.concatenate([part.step_sizes for part in parts]),
        classes=first.classes,
        preprocessing=first.preprocessing,
    )


def _read_one(folder: Path) -> Distilled:
    card = read_json(folder / CARD)
    arrays = read_arrays(folder / ARRAYS)
    if missing := {"images", "labels", "step_sizes"} - set(arrays):
        raise DataError(f"{folder / ARRAYS} lacks {sorted(missing)}; remove the folder and run: dvc repro distill")
    return Distilled(
        images=arrays["images"],
        labels=arrays["labels"],
        step_sizes=arrays["step_sizes"],
        classes=tuple(card["classes"]),
        preprocessing=card["preprocessing"],
    )


def saved_name(epoch: int) -> str:
    """The file of the images after an outer epoch."""
    return f"epoch-{epoch:04d}.safetensors"


def read_saved(folder: Path) -> dict[int, Float32[np.ndarray, "steps n 3 h w"]]:
    """The saved images under `folder / "saved"` by outer epoch, in order."""
    found = {}
    for path in folder.glob("saved/epoch-*.safetensors"):
        if match := SAVED.fullmatch(path.name):
            found[int(match.group(1))] = read_arrays(path)["images"]
    return dict(sorted(found.items()))
