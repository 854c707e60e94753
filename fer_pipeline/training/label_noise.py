"""Change some labels of a labelled set, to study what a method makes of wrong ones.

Source: Progressive Teacher (arXiv:2205.14361), sections 4 and 4.3.2. Symmetric noise changes a share of the labels of
each class to the other classes, each as likely; asymmetric noise changes a share of two classes (surprise and fear)
into each other. Trainings see the changed labels, their validation part too; test splits, the faces on disk, the truth
that the report compares with, and what `train_primitive` holds out to measure mining by, stay as they are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from pydantic import Field, model_validator

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings
from fer_pipeline.training.sets import ImageSet


class LabelNoise(Settings):
    kind: Literal["symmetric", "asymmetric"]
    rate: Annotated[float, Field(gt=0, lt=1)]  # of the labels of each class, or of the pair's
    pair: tuple[str, str] = ("surprise", "fear")  # of asymmetric noise alone
    seed: int = 0  # the same for every recipe and training seed, so that all see the same wrong labels

    @model_validator(mode="after")
    def _pair_is_of_two(self) -> "LabelNoise":
        if self.pair[0] == self.pair[1]:
            raise ValueError(f"pair must name two classes, found {self.pair[0]} twice")
        return self

    def check(self, classes: Sequence[str], *, where: str) -> None:
        """ConfigError where asymmetric noise names a class that is none."""
        if self.kind == "asymmetric" and (unknown := [name for name in self.pair if name not in classes]):
            raise ConfigError(
                f"{where}.label_noise.pair: {unknown[0]!r} is none of the classes {', '.join(classes)}; name two"
            )


def noisy_labels(
    labels: Int64[np.ndarray, " n"], face_id: np.ndarray, noise: LabelNoise, classes: Sequence[str]
) -> Int64[np.ndarray, " n"]:
    """Returns the labels with `round(rate * n)` of every class that the noise is about changed.

    Which ones depends on the seed and the names of the faces, not on their order.
    """
    changed = labels.copy()
    pair = [list(classes).index(name) for name in noise.pair] if noise.kind == "asymmetric" else []
    for index in pair or range(len(classes)):
        random = np.random.default_rng(derive(noise.seed, "label_noise", index))
        rows = sorted(np.flatnonzero(labels == index).tolist(), key=lambda row: str(face_id[row]))
        chosen = random.permutation(np.array(rows, np.int64))[: math.floor(noise.rate * len(rows) + 0.5)]
        others = pair or range(len(classes))
        changed[chosen] = random.choice([other for other in others if other != index], len(chosen))
    return changed


def add_noise(
    images: ImageSet, noise: LabelNoise, classes: Sequence[str], *, spared: Bool[np.ndarray, " n"] | None = None
) -> ImageSet:
    """Returns the set with changed labels; its `truth` keeps those of before.

    What is `spared` keeps its label; that changes no other face's, so that all trainings see the same wrong labels.
    """
    labels = noisy_labels(images.labels.numpy(), images.face_id, noise, classes)
    if spared is not None:
        labels = np.where(spared, images.labels.numpy(), labels)
    return replace(images, labels=torch.from_numpy(labels), truth=images.labels)


def describe_noise(images: ImageSet, noise: LabelNoise, classes: Sequence[str]) -> dict[str, Any]:
    """Returns what a card says of a set with changed labels: the settings, and counts by class."""
    assert images.truth is not None, "add_noise keeps the labels of before"
    truth, wrong = images.truth.numpy(), (images.truth != images.labels).numpy()
    counts = {
        "changed": np.bincount(truth[wrong], minlength=len(classes)).tolist(),
        "labels": np.bincount(truth, minlength=len(classes)).tolist(),
    }
    own = noise.model_dump(mode="json", exclude=None if noise.kind == "asymmetric" else {"pair"})
    return {**own, **{key: dict(zip(classes, count, strict=True)) for key, count in counts.items()}}


def summarise_noise(training: dict[str, Any]) -> tuple[str, dict[str, int | float]]:
    """Returns the part of a stage's line that speaks of changed labels, and the counts; empty where there are none."""
    if (noise := training.get("label_noise")) is None:
        return "", {}
    changed, labels = (sum(noise[key].values()) for key in ("changed", "labels"))
    line = f"; {changed:,} of {labels:,} labels changed ({noise['kind']}, rate {noise['rate']:g})"
    return line, {"labels_changed": changed, "labels": labels}
