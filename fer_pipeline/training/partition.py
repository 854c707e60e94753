"""Divide a labelled set into parts of given shares, whole persons at a time.

Nobody's faces are in two parts: subjects move as a whole (faces without a subject are each their own). Within that
every class is divided as the shares say, as well as whole subjects allow. Source: the greedy rule of scikit-learn's
StratifiedGroupKFold, here for parts of any size: groups in random order, large first, each to the part where it
lessens the squared shortfall of the class counts the most; the rest part `fit` wins ties and keeps at least one face of
every class that has one.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from fer_pipeline.artifacts.split import FIT
from fer_pipeline.core.seeds import derive


def partition(
    labels: Int64[np.ndarray, " n"],
    subjects: np.ndarray,
    *,
    shares: Mapping[str, float],
    seed: int,
    num_classes: int,
) -> np.ndarray:
    """`fit` or one of the names in `shares` for every face."""
    assert sum(shares.values()) < 1, "the shares leave nothing to train on"
    names = [FIT, *shares]
    wanted = np.array([1 - sum(shares.values()), *shares.values()])
    keys = pa.array([subject or f"\x00{index}" for index, subject in enumerate(subjects)], pa.string())
    group = keys.dictionary_encode().indices.to_numpy()  # in the order of their first faces
    counts = np.zeros((int(group.max(initial=-1)) + 1, num_classes))
    np.add.at(counts, (group, labels), 1)
    totals = counts.sum(0)
    desired = wanted[:, None] * totals[None, :]
    # Per class, not per face: a class with few faces must be divided as well as a class with many.
    importance = 1 / np.maximum(totals, 1)
    random = np.random.default_rng(derive(seed, "partition"))
    order = random.permutation(len(counts))
    order = order[np.argsort(-counts[order].max(1, initial=0), kind="stable")]
    assigned = np.zeros((len(names), num_classes))
    part_of_group = np.zeros(len(counts), np.int64)
    for index in order:
        change = ((2 * (assigned - desired) + counts[index]) * counts[index] * importance).sum(1)
        part_of_group[index] = int(np.argmin(change))
        assigned[part_of_group[index]] += counts[index]
    for index in np.flatnonzero((totals > 0) & (counts[part_of_group == 0].sum(0) == 0)):
        smallest = min(np.flatnonzero(counts[:, index] > 0), key=lambda group: counts[group].sum())
        part_of_group[smallest] = 0
    return np.array(names, dtype=object)[part_of_group[group]]
