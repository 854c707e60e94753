"""The checkpoint's split and the anchor's embeddings in, features with labels out: of any part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from fer_pipeline.artifacts.arrow import is_among, places_among
from fer_pipeline.artifacts.embeddings import Embeddings, iter_embeddings
from fer_pipeline.artifacts.faces import open_shard
from fer_pipeline.core.errors import DataError

FIT, VALIDATION, HELD_OUT = "fit", "validation", "heldout"
NO_LABEL = -1


@dataclass(frozen=True)
class AnchorSplit:
    """Which part each labelled anchor face belongs to."""

    face_id: pa.StringArray
    label: Int64[np.ndarray, " n"]
    part: np.ndarray  # of str

    def labels_in(self, face_id: pa.StringArray, parts: Sequence[str]) -> Int64[np.ndarray, " k"]:
        """The label of each of these faces, `NO_LABEL` for those outside `parts`."""
        place = places_among(face_id, self.face_id)
        inside = (place >= 0) & np.isin(self.part, parts)[place]
        return np.where(inside, self.label[place], NO_LABEL).astype(np.int64)


def read_split(model: Path, *, classes: Sequence[str]) -> AnchorSplit:
    """`split.parquet` of a primitive learner."""
    path = model / "split.parquet"
    if not path.is_file():
        raise DataError(f"{path} does not exist: {model} is no primitive learner; run train_primitive (dvc repro)")
    table = open_shard(path).read(columns=["face_id", "label", "part"])
    split = AnchorSplit(
        face_id=table.column("face_id").combine_chunks(),
        label=table.column("label").to_numpy().astype(np.int64),
        part=np.array(table.column("part").to_pylist(), dtype=object),
    )
    if len(split.label) and not (0 <= split.label.min() and split.label.max() < len(classes)):
        raise DataError(
            f"{path} has labels from {split.label.min()} to {split.label.max()}, expected 0 to {len(classes) - 1}"
        )
    return split


def labelled(
    paths: Sequence[Path], split: AnchorSplit, parts: Sequence[str]
) -> Iterator[tuple[Embeddings, np.ndarray]]:
    """The embeddings of these parts, batch by batch, with their labels."""
    for path in paths:
        for batch in iter_embeddings(path):
            labels = split.labels_in(batch.face_id, parts)
            chosen = np.flatnonzero(labels >= 0)
            if len(chosen):
                yield Embeddings(batch.face_id.take(pa.array(chosen)), batch.vector[chosen]), labels[chosen]


def check_complete(paths: Sequence[Path], split: AnchorSplit, *, folder: Path) -> int:
    """All labelled faces must have an embedding; gives the number of embeddings that the split does not name."""
    found = pa.chunked_array([batch.face_id for path in paths for batch in iter_embeddings(path)], pa.string())
    missing = split.face_id.filter(pa.array(~is_among(split.face_id, found.combine_chunks())))
    if len(missing):
        raise DataError(
            f"{len(missing):,} faces that the primitive learner was trained on have no embedding in {folder}, "
            f"the first is {missing[0]}; embed the anchor's train split with this checkpoint"
        )
    return len(found) - len(split.face_id)
