"""Read and write distilled sets: synthetic images with labels and step sizes, one folder a set.

`data/distilled/<name>/distilled.safetensors` holds `images` f32 [steps n 3 h w] in the network's *normalised* input
space, `labels` i64 [steps n] and `step_sizes` f32 [steps]; `card.json` says for which classes and which preprocessing.
Beside them: `saved/epoch-*.safetensors` (the images of earlier outer epochs), `history.csv`, `probe.json`, `previews/`
and `controls.json`: how well a network trained on the images alone does on held-out faces, beside its controls.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from fer_pipeline.artifacts.arrays import Kind, read_arrays, write_arrays
from fer_pipeline.artifacts.seed_folders import find_files
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage, write_json
from fer_pipeline.core.settings import AllSeen, PlainName

ARRAYS = "distilled.safetensors"
CARD = "card.json"
PROBE, CONTROLS = "probe.json", "controls.json"
SAVED = re.compile(r"epoch-(\d+)\.safetensors")
IMAGES = Kind("F32", ("steps", "images_per_step", 3, "height", "width"))
ARRAY_KINDS = {
    "images": IMAGES,
    "labels": Kind("I64", ("steps", "images_per_step")),
    "step_sizes": Kind("F32", ("steps",)),
}
Report = TypeVar("Report", bound=BaseModel)


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
    epochs_run: PositiveInt | None = None
    best_epoch: PositiveInt | None = None  # whose images these are
    stopped: str = ""  # why it ended
    theta_0_loss: float | None = None  # on the source, before the first step
    theta_0_accuracy: float | None = None
    seen: AllSeen = {}  # what registered weights behind the images were trained on


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
    folders = [path.parent for path in find_files(folder, CARD) or find_files(folder, f"*/{CARD}")]
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
    missing = Probe(reason="no probe was run")
    return _read_report(folder / PROBE, missing, "is no probe of a distilled set")


class Estimate(BaseModel):
    """A share or a difference of shares, with its 95 % interval where it has one."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    mean: Annotated[float, Field(ge=-1, le=1)]
    low: Annotated[float, Field(ge=-1, le=1)] | None = None
    high: Annotated[float, Field(ge=-1, le=1)] | None = None


class Trained(BaseModel):
    """How trainings on one kind of images alone do on the held-out faces."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    start: Literal["theta_0", "fresh"]
    training: Literal["steps", "plain"]
    images: PlainName
    draws: PositiveInt
    accuracy: Share
    mean_class_accuracy: Estimate


class Gain(Estimate):
    """The mean class accuracy of the distilled images minus that of a control, each trained on in its better way."""

    start: Literal["theta_0", "fresh"]
    against: PlainName


class Controls(BaseModel):
    """What `controls.json` holds; or the reason why nothing was compared."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    reason: str = ""
    heldout_images: NonNegativeInt = 0
    heldout_persons: NonNegativeInt = 0
    trainings: list[Trained] = []
    differences: list[Gain] = []

    @model_validator(mode="after")
    def _is_something(self) -> "Controls":
        if self.reason:
            return self
        if "fresh" not in {row.start for row in self.differences}:
            raise ValueError("it compares nothing from fresh weights, and has no reason for that")
        trained = {(row.start, row.images) for row in self.trainings}
        for row in self.differences:
            if missing := {(row.start, row.against), (row.start, "distilled")} - trained:
                raise ValueError(f"it lacks the training on {min(missing)[1]}")
        return self

    @property
    def start(self) -> Literal["theta_0", "fresh"]:
        """The start that the verdict is about: theta_0 where there is one, else fresh weights."""
        return "theta_0" if any(row.start == "theta_0" for row in self.differences) else "fresh"

    def unbeaten(self, start: str) -> list[Gain]:
        """Returns the controls whose difference is not surely above zero."""
        return [row for row in self.differences if row.start == start and not (row.low is not None and row.low > 0)]

    def best(self, start: str, images: str) -> Trained:
        """Returns the better of the trainings on one kind of images."""
        rows = [row for row in self.trainings if (row.start, row.images) == (start, images)]
        return max(rows, key=lambda row: row.mean_class_accuracy.mean)

    def sentence(self, start: str) -> str:
        """Says whether the distilled images beat their controls, with the figures."""
        where = {"theta_0": "theta_0", "fresh": "fresh random weights"}[start]
        found = self.best(start, "distilled")
        persons = f" of {self.heldout_persons:,} persons" if self.heldout_persons else ""
        faces = f"{self.heldout_images:,} held-out faces{persons}"
        text = (
            f"trained alone from {where}, the distilled images reach {_percent(found.mean_class_accuracy)} mean class "
        )
        controls = [row.against for row in self.differences if row.start == start]
        figures = [f"{_words(one)} {_percent(self.best(start, one).mean_class_accuracy)}" for one in controls]
        text += f"accuracy on {faces} ({', '.join(figures)})"
        if not (unbeaten := self.unbeaten(start)):
            return f"{text}: they beat their controls"
        gains = [f"{_words(row.against)} ({_points(row)})" for row in unbeaten]
        return f"{text}: they do not beat {', '.join(gains)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(value: Estimate) -> str:
    return f"{value.mean:.1%}"


def _points(row: Estimate) -> str:
    span = (
        "" if row.low is None or row.high is None else f", 95 % interval {100 * row.low:+.1f} to {100 * row.high:+.1f}"
    )
    return f"{100 * row.mean:+.1f} points{span}"


def read_controls(folder: Path) -> Controls:
    """Reads `controls.json` of a distilled set; a damaged one is a DataError."""
    missing = Controls(reason="nothing was compared with controls")
    return _read_report(folder / CONTROLS, missing, "is no comparison with controls")


def _read_report(path: Path, missing: Report, fault: str) -> Report:
    """Reads a file of the kind of `missing`, which is returned where there is none."""
    if not path.exists():
        return missing
    content = read_json(path)
    with refuse_damage(path, fault, "remove its folder and run: dvc repro distill"):
        return type(missing).model_validate(content)


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
