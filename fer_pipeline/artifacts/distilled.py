"""Read and write distilled sets: synthetic images with labels and step sizes, one folder a set.

`data/distilled/<name>/distilled.safetensors` holds `images` f32 [steps n 3 h w] in the network's *normalised* input
space, `labels` i64 [steps n] and `step_sizes` f32 [steps]; `card.json` says for which classes and which preprocessing.
Beside them: `saved/epoch-*.safetensors` (the images of earlier outer epochs), `history.csv`, `probe.json`, `previews/`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from fer_pipeline.artifacts.arrays import Kind, read_arrays, write_arrays
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage, write_json
from fer_pipeline.core.settings import PlainName

ARRAYS = "distilled.safetensors"
CARD = "card.json"
PROBE = "probe.json"
SAVED = re.compile(r"epoch-(\d+)\.safetensors")
IMAGES = Kind("F32", ("steps", "images_per_step", 3, "height", "width"))
ARRAY_KINDS = {
    "images": IMAGES,
    "labels": Kind("I64", ("steps", "images_per_step")),
    "step_sizes": Kind("F32", ("steps",)),
}


class DistilledCard(BaseModel):
    """What the card of a distilled set says that a reader depends on; there is more beside it."""

    model_config = ConfigDict(extra="allow", strict=True)

    classes: Annotated[list[PlainName], Field(min_length=1)]
    preprocessing: dict[str, Any]
    steps: PositiveInt
    images_per_step: PositiveInt
    height: PositiveInt
    width: PositiveInt
    source_images: PositiveInt | None = None


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
    write_arrays(folder / ARRAYS, {name: getattr(distilled, name) for name in ARRAY_KINDS})
    write_json(folder / CARD, {**about, **spaces, **shape})


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
    return replace(first, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAY_KINDS})


def read_distilled_card(folder: Path) -> DistilledCard:
    """Reads the card of one distilled set; a damaged one is a DataError."""
    content = read_json(folder / CARD)
    with refuse_damage(folder / CARD, "is no card of a distilled set", "remove its folder and run: dvc repro distill"):
        return DistilledCard.model_validate(content)


Share = Annotated[float, Field(ge=0, le=1)]


class ProbeEpoch(BaseModel):
    """The accuracy of the probe's network after an epoch, on the images that it learns from and on those left out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: PositiveInt
    train: Share
    test: Share


Curve = Annotated[list[ProbeEpoch], Field(min_length=1)]


class Probe(BaseModel):
    """Curves of the probe by what it left out, one a run and all of one length; or the reason why there are none."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    reason: str = ""
    chance: Share | None = None
    saved_image: list[Curve] = []
    unseen_image: list[Curve] = []

    @model_validator(mode="after")
    def _curves_are_of_one_length(self) -> "Probe":
        for curves in (self.saved_image, self.unseen_image):
            if len({len(curve) for curve in curves}) > 1:
                raise ValueError("its curves differ in length")
        if self.saved_image and self.chance is None:
            raise ValueError("it says no chance")
        return self


def read_probe(folder: Path) -> Probe:
    """Reads `probe.json` of a distilled set; a damaged one is a DataError."""
    path = folder / PROBE
    if not path.exists():
        return Probe(reason="no probe was run")
    content = read_json(path)
    with refuse_damage(path, "is no probe of a distilled set", "remove its folder and run: dvc repro distill"):
        return Probe.model_validate(content)


def _read_one(folder: Path) -> DistilledSet:
    card = read_distilled_card(folder)
    arrays, _ = read_arrays(folder / ARRAYS, ARRAY_KINDS, stage="distill")
    labels, shape = arrays["labels"], (card.steps, card.images_per_step, 3, card.height, card.width)
    if arrays["images"].shape != shape or not (0 <= labels.min() and labels.max() < len(card.classes)):
        raise DataError(
            f"{folder / ARRAYS} does not fit its {CARD}, by shape or labels; remove the folder and run: dvc repro "
            "distill"
        )
    return DistilledSet(**arrays, classes=tuple(card.classes), preprocessing=card.preprocessing)


def saved_name(epoch: int) -> str:
    """Returns the file name of the images after an outer epoch."""
    return f"epoch-{epoch:04d}.safetensors"


def read_saved(folder: Path) -> dict[int, Float32[np.ndarray, "steps n 3 h w"]]:
    """Reads the saved images under `folder / "saved"` by outer epoch, in order."""
    matches = {path: SAVED.fullmatch(path.name) for path in folder.glob("saved/epoch-*.safetensors")}
    epochs = {int(match.group(1)): path for path, match in matches.items() if match}
    kinds = {"images": IMAGES}
    return {epoch: read_arrays(path, kinds, stage="distill")[0]["images"] for epoch, path in sorted(epochs.items())}
