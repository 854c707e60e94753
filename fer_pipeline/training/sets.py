"""Training images in memory: faces on disk, or distilled images, in; tensors with labels, decoded once, out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fer_pipeline.artifacts.faces import Faces, iter_faces, join_faces, open_shard, read_about, shard_paths
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256
from fer_pipeline.core.fingerprints import fingerprint


@dataclass(frozen=True)
class ImageSet:
    """Images as uint8 crops, or as floats that are already in the network's input space."""

    images: UInt8[Tensor, "n h w 3"] | Float[Tensor, "n 3 s s"]
    labels: Int64[Tensor, " n"]  # -1 for none
    face_id: np.ndarray
    subjects: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def prepared(self) -> bool:
        """Whether the images are network inputs already."""
        return self.images.is_floating_point()

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Some rows as a set of their own."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return ImageSet(self.images[index], self.labels[index], self.face_id[rows], self.subjects[rows])

    def counts(self, num_classes: int) -> Int64[np.ndarray, " c"]:
        """Images per class."""
        labels = self.labels.numpy()
        return np.bincount(labels[labels >= 0], minlength=num_classes)


def read_images(folder: Path, *, classes: Sequence[str], label: Literal["label", "pseudo_label"] = "label") -> ImageSet:
    """All faces under `folder` that have a label; refuses other classes, another order, or a split other than train."""
    found = tuple(read_about(folder)["classes"])
    if found != tuple(classes):
        raise DataError(
            f"{folder} has the classes {', '.join(found)}, expected {', '.join(classes)} in this order; "
            "run the stage that writes it again"
        )
    _refuse_other_splits(folder)
    faces = join_faces(list(iter_faces(folder, batch_size=1024, label=label)))
    return as_set(faces)


def as_set(faces: Faces) -> ImageSet:
    """Decoded faces as a set, without those that have no label."""
    rows = np.flatnonzero(faces.labels >= 0)
    return ImageSet(
        images=torch.from_numpy(np.ascontiguousarray(faces.images[rows])),
        labels=torch.from_numpy(faces.labels[rows]),
        face_id=faces.face_id[rows],
        subjects=faces.subjects[rows],
    )


def _refuse_other_splits(folder: Path) -> None:
    for path in shard_paths(folder):
        splits = set(open_shard(path).read(columns=["split"]).column("split").to_pylist()) - {"train", None}
        if splits:
            raise DataError(
                f"{path} holds the split {sorted(splits)[0]!r}, and training reads train splits only; name that folder"
            )


def refuse_empty_classes(counts: Sequence[int] | np.ndarray, *, classes: Sequence[str], where: Path | str) -> None:
    """A class without a single face cannot be learned."""
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{where} has no face of the class {', '.join(empty)}; take it out of classes or map a label to it"
        )


def folder_sha256(folder: Path) -> str:
    """A hash of the names and bytes of all shards under a folder."""
    return fingerprint([[str(path.relative_to(folder)), file_sha256(path)] for path in shard_paths(folder)])
