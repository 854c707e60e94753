"""Features and labels of anchor faces in, one mean feature per class out.

Source: arXiv:2005.08551, eq. 4: center_k = sum_i [y_i = k] f_i / sum_i [y_i = k]. The features are stored in half
precision, the sums run in float64 batch by batch, so memory does not grow with the anchor. Which faces count is the
caller's choice; held-out faces never do, because the precision of the mining is estimated on them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from fer_pipeline.core.errors import DataError

Batch = tuple[Float[np.ndarray, "_ d"], Int[np.ndarray, " _"]]


def class_centroids(
    batches: Iterable[Batch], *, classes: Sequence[str]
) -> tuple[Float64[np.ndarray, "c d"], Int64[np.ndarray, " c"]]:
    """The mean feature and the number of faces of every class. Labels below zero are left out."""
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
    return finish(sums, counts, classes=classes), counts


def finish(
    sums: Float64[np.ndarray, "c d"] | None, counts: Int64[np.ndarray, " c"], *, classes: Sequence[str]
) -> Float64[np.ndarray, "c d"]:
    """Sums over counts; a class without a face, without a direction or with a NaN is a DataError."""
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if sums is None or empty:
        raise DataError(
            f"the anchor has no face to make a centroid of for {', '.join(empty or classes)}; "
            "add labelled faces of it or take it out of `classes`"
        )
    bad = [name for name, row in zip(classes, sums, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise DataError(
            f"the anchor's features of {', '.join(bad)} hold NaN or infinite values; "
            "train the primitive learner again with a lower learning rate, then rerun embed"
        )
    flat = [name for name, row in zip(classes, sums, strict=True) if not row.any()]
    if flat:
        raise DataError(
            f"the centroid of {', '.join(flat)} is the zero vector; the primitive learner has collapsed, train it again"
        )
    return sums / counts[:, None]
