"""Read the sources of a recipe: each stream that a strategy declares, from the folder that the recipe names.

Trained networks are sources, too, so that DVC and the store know of them, but give no stream. Neither do faces that
people judged (`reviewed`), which every strategy takes: they join its labelled stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Int64

from fer_pipeline.artifacts.distilled import ARRAYS, CARD, distilled_folders, read_distilled, read_distilled_card
from fer_pipeline.artifacts.faces import open_shard, read_seen, read_table, shard_paths
from fer_pipeline.artifacts.seed_folders import name_in, of_seed
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Seen, Settings, pass_on, validate
from fer_pipeline.networks.checkpoints import checkpoint_folders, predictor_parts
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import find_columns, seen_by
from fer_pipeline.networks.settings import read_card
from fer_pipeline.training.images import MemoryBudget
from fer_pipeline.training.sets import ImageSet, Label, check_classes, folder_sha256, image_set, read_images
from fer_pipeline.training.settings import PoolOptions


class Source(ABC):
    """What all sources share: a folder of face shards, unless a source says otherwise."""

    label: Label | None
    required: bool
    per_seed = False  # whether every seed has other images

    def sha256(self, folder: Path) -> str:
        """A hash of all that may be read."""
        return folder_sha256(folder)

    def class_counts(self, folder: Path, classes: Sequence[str]) -> Int64[np.ndarray, " c"] | None:
        """Images of every class, without decoding one; None for an unlabelled stream."""
        check_classes(folder, classes)
        if self.label is None:
            return None
        if self.label not in open_shard(shard_paths(folder)[0]).names:
            raise DataError(
                f"{folder} has no column {self.label}; name a folder of {MADE_BY[self.label]} for this source"
            )
        labels = read_table(folder, [self.label]).column(self.label).drop_null().to_numpy()
        return np.bincount(labels[labels >= 0], minlength=len(classes))

    def seen(self, folder: Path) -> dict[str, Seen]:
        """What registered weights behind it were trained on."""
        return read_seen(folder)

    def of_seed(self, folder: Path, seed: int) -> Path:
        """What a seed reads of the folder that the recipe names."""
        return of_seed(folder, seed)

    @abstractmethod
    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        """The images, their labels as numbers of `classes`; `budget` says which stay in memory."""


@dataclass(frozen=True)
class Faces(Source):
    """A stream of faces; `label` names the column of their classes, None for an unlabelled stream."""

    label: Label | None = "label"
    required: bool = False
    landmarks: bool = False  # whether batches carry them
    also: Path | None = None  # a folder of more of them

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        options = {"label": self.label, "landmarks": self.landmarks, "also": self.also}
        return read_images(folder, classes=classes, budget=budget, **options)


@dataclass(frozen=True)
class Reviewed(Source):
    """Faces with labels by people, for the labelled stream; there may be none, or none of some class."""

    required: bool = False
    label = None

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        raise AssertionError("judged faces are read with the labelled ones")


REVIEWED = "reviewed"


def sources_of(strategy: ModuleType, options: Settings) -> dict[str, Source]:
    """Returns the sources of a strategy: those that it declares, and `reviewed`."""
    return {**strategy.sources(options), REVIEWED: Reviewed()}


def pool_sources(options: PoolOptions) -> dict[str, Source]:
    """The streams of a strategy with `PoolOptions`: the pool may also be the mined subset without its labels."""
    pool = Faces(None, required=True, landmarks=options.needs_landmarks)
    return {"labelled": Faces(required=True), "unlabelled": pool, "mined": Faces("pseudo_label")}


@dataclass(frozen=True)
class DistilledImages(Source):
    """Distilled sets, taken whole in every step: network inputs, in the space that they were distilled for."""

    required: bool = False

    def sha256(self, folder: Path) -> str:
        paths = [path / name for path in distilled_folders(folder) for name in (ARRAYS, CARD)]
        return fingerprint([[name_in(path, folder), file_sha256(path)] for path in paths])

    def seen(self, folder: Path) -> dict[str, Seen]:
        return {name: one for path in distilled_folders(folder) for name, one in read_distilled_card(path).seen.items()}

    def class_counts(self, folder: Path, classes: Sequence[str]) -> Int64[np.ndarray, " c"]:
        return np.bincount(read_distilled(folder, classes=classes).labels.reshape(-1), minlength=len(classes))

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        distilled = read_distilled(folder, classes=classes)
        images, labels = distilled.flat()
        names = np.array([f"distilled/{index}" for index in range(len(labels))], dtype=object)
        subjects = np.full(len(labels), "", dtype=object)
        space = validate(Preprocessing, dict(distilled.preprocessing), where=f"{folder}, preprocessing")
        return image_set(torch.from_numpy(images), torch.from_numpy(labels), names, subjects, space=space)


@dataclass(frozen=True)
class RandomFaces(Source):
    """A few random pseudo-labelled faces of each class, others for each seed, decoded and taken whole in every step.

    They are the control of distilled images.
    """

    per_class: int = 1
    required: bool = False
    label = "pseudo_label"
    per_seed = True

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        faces = read_images(folder, classes=classes, budget=None, label=self.label)
        random = np.random.default_rng(derive(seed, "random_real"))
        members = [np.flatnonzero(faces.labels.numpy() == index) for index in range(len(classes))]
        chosen = faces.take(np.concatenate([random.permutation(own)[: self.per_class] for own in members]))
        return chosen.with_pixels(chosen.all_pixels())


@dataclass(frozen=True)
class NoiseImages(DistilledImages):
    """As many images of noise as a distilled set has, others for each seed, taken whole in every step.

    They are the control of distilled images: what such images begin as (Wang et al., arXiv:1811.10959), standard normal
    in the network's input space, with the labels of the set that the folder holds.
    """

    per_seed = True

    def seen(self, folder: Path) -> dict[str, Seen]:
        return {}

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        distilled = super().read(folder, classes, budget=budget, seed=seed)
        generator = torch.Generator().manual_seed(derive(seed, "distill", "noise"))
        return distilled.with_pixels(torch.randn(distilled.all_pixels().shape, generator=generator))


@dataclass(frozen=True)
class Checkpoints(Source):
    """Trained networks of this project, which `BuildContext.checkpoints` names: all that a folder has, or one.

    With `one`, a folder with a checkpoint for each seed (the models of another recipe) gives each seed its own; without
    it only one whose `seeds.json` says that each seed learned from something of its own.
    """

    one: bool = False  # `BuildContext.trained` loads it
    confidence: bool = False  # whether they must say how sure they are
    required: bool = False
    label = None

    def of_seed(self, folder: Path, seed: int) -> Path:
        found = super().of_seed(folder, seed)
        return found if not self.one or checkpoint_folders(found) == [found] else found / str(seed)

    def sha256(self, folder: Path) -> str:
        """A hash of all that their predictions depend on; how they were trained is no part of it."""
        return fingerprint([[str(path.relative_to(folder)), *predictor_parts(path)] for path in self._paths(folder)])

    def seen(self, folder: Path) -> dict[str, Seen]:
        models = [seen_by(read_card(path)) for path in self._paths(folder)]
        return {name: one for seen in models for name, one in pass_on(seen, "its teacher").items()}

    def class_counts(self, folder: Path, classes: Sequence[str]) -> None:
        for path in self._paths(folder):
            card = read_card(path)
            find_columns(str(path), card.classes, classes)
            if self.confidence and not card.confidence:
                raise DataError(
                    f"{path} has no head of confidence; name the models of a recipe with strategy: confidence"
                )

    def _paths(self, folder: Path) -> list[Path]:
        return [folder] if self.one else checkpoint_folders(folder)

    def read(self, folder: Path, classes: Sequence[str], *, budget: MemoryBudget, seed: int) -> ImageSet:
        raise AssertionError("checkpoints give no stream")


# sources are options of train_final beside these
TAKEN = {"recipe", "out", "timings", "labels", "store", "params", "help"}
MADE_BY = {"label": "labelled faces (align)", "pseudo_label": "mined or random faces (shard)"}


def check_sources(declared: Mapping[str, Source], named: Mapping[str, Path], *, where: str) -> None:
    """ConfigError where a recipe names a source that its strategy does not know, or lacks one that it needs."""
    if taken := sorted({*declared} & TAKEN):
        raise ConfigError(
            f"{where}: a source cannot be called {taken[0]!r}, which is an option of train_final; rename it"
        )
    known = ", ".join(f"{name} (required)" if source.required else name for name, source in declared.items())
    if unknown := [name for name in named if name not in declared]:
        raise ConfigError(f"{where}: unknown source {unknown[0]!r}; the strategy reads {known}")
    if missing := [name for name, source in declared.items() if source.required and name not in named]:
        raise ConfigError(f"{where}: the source {missing[0]!r} is missing; the strategy reads {known}")
