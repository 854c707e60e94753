"""Average the features of the anchor's faces into one centroid per class.

Source: arXiv:2005.08551, eq. 4: center_k = sum_i [y_i = k] f_i / sum_i [y_i = k]. The features are stored in half
precision, the sums run in float64 batch by batch, so memory does not grow with the anchor. Which faces count is the
caller's choice; what the model held out never does, because the precision of the mining is estimated on it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float64, Int, Int64

from fer_pipeline.artifacts.arrow import is_among
from fer_pipeline.artifacts.embeddings import Embeddings, iter_embeddings
from fer_pipeline.artifacts.split import Split
from fer_pipeline.core.errors import DataError

Batch = tuple[Float[np.ndarray, "_ d"], Int[np.ndarray, " _"]]


def iter_labelled(
    paths: Sequence[Path], split: Split, parts: Sequence[str]
) -> Iterator[tuple[Embeddings, Int64[np.ndarray, " _"]]]:
    """Yields the embeddings of these parts of the anchor, batch by batch, with their labels."""
    for path in paths:
        for batch in iter_embeddings(path):
            labels = split.labels_of(batch.face_id, parts)
            chosen = np.flatnonzero(labels >= 0)
            if len(chosen):
                yield Embeddings(batch.face_id.take(pa.array(chosen)), batch.vector[chosen]), labels[chosen]


def check_complete(paths: Sequence[Path], split: Split, *, folder: Path) -> int:
    """Refuses an anchor of which a labelled face has no embedding; returns how many embeddings the split lacks."""
    embedded = pa.chunked_array([batch.face_id for path in paths for batch in iter_embeddings(path)], pa.string())
    missing = split.face_id.filter(pa.array(~is_among(split.face_id, embedded.combine_chunks())))
    if len(missing):
        raise DataError(
            f"{len(missing):,} faces that the primitive learner was trained on have no embedding in {folder}, "
            f"the first is {missing[0]}; embed the anchor's train split with this checkpoint"
        )
    return len(embedded) - len(split.face_id)


def class_centroids(
    batches: Iterable[Batch], *, classes: Sequence[str]
) -> tuple[Float64[np.ndarray, "c d"], Int64[np.ndarray, " c"]]:
    """Returns the mean feature and the number of faces of every class; labels below zero are left out.

    A class without a face, without a direction or with a NaN is a DataError.
    """
    sums: np.ndarray | None = None
    counts = np.zeros(len(classes), np.int64)
    for features, labels in batches:
        assert labels.max(initial=-1) < len(classes), "a label outside the classes"
        if sums is None:
            sums = np.zeros((len(classes), features.shape[1]), np.float64)
        for label in np.unique(labels[labels >= 0]):
            members = features[labels == label]
            sums[label] += members.sum(axis=0, dtype=np.float64)
            counts[label] += len(members)

    def names(mask: np.ndarray) -> str:
        return ", ".join(classes[k] for k in np.flatnonzero(mask).tolist())

    if sums is None or not counts.all():
        raise DataError(
            f"the anchor has no face to make a centroid of for {names(counts == 0)}; "
            "add labelled faces of it or take it out of `classes`"
        )
    lengths = np.linalg.norm(sums, axis=1)
    if not np.isfinite(lengths).all():
        raise DataError(
            f"the anchor's features of {names(np.logical_not(np.isfinite(lengths)))} hold NaN or infinite values; "
            "train the primitive learner again with a lower learning rate, then rerun embed"
        )
    if not lengths.all():
        raise DataError(
            f"the centroid of {names(lengths == 0)} is the zero vector; the primitive learner has collapsed, "
            "train it again"
        )
    return sums / counts[:, None], counts
