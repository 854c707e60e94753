"""Centroids against hand-sized truths and one pass in float64."""

import numpy as np
import pytest

from fer_pipeline.core.errors import DataError
from fer_pipeline.scoring.centroids import class_centroids

CLASSES = ("anger", "fear")


def test_means_by_hand_over_several_batches() -> None:
    batches = [
        (np.array([[1.0, 2.0], [3.0, 4.0]], np.float16), np.array([0, 1])),
        (np.array([[3.0, 0.0], [9.0, 9.0]], np.float16), np.array([0, -1])),
    ]
    centroids, counts = class_centroids(batches, classes=CLASSES)
    np.testing.assert_array_equal(centroids, [[2.0, 1.0], [3.0, 4.0]])
    np.testing.assert_array_equal(counts, [2, 1])


def test_sums_run_in_float64() -> None:
    """40,000 times 1 and one 10,000: a sum in half precision stops at 2,048."""
    features = np.ones((40_001, 1), np.float16)
    features[-1] = 10_000
    labels = np.zeros(40_001, np.int64)
    features, labels = np.vstack([features, [[1]]]).astype(np.float16), np.append(labels, 1)
    centroids, _ = class_centroids([(features, labels)], classes=CLASSES)
    assert centroids[0, 0] == 50_000 / 40_001


@pytest.mark.parametrize(
    ("row", "labels", "words"),
    [
        ([1.0, 1.0], [0, 0], "fear"),
        ([np.nan, 1.0], [0, 1], "NaN or infinite"),
        ([np.inf, 1.0], [0, 1], "NaN or infinite"),
        ([0.0, 0.0], [0, 1], "zero vector"),
    ],
)
def test_what_cannot_be_a_centroid_is_one_line(row: list[float], labels: list[int], words: str) -> None:
    features = np.array([row, [1.0, 1.0]], np.float16)
    with pytest.raises(DataError, match=words) as raised:
        class_centroids([(features, np.array(labels))], classes=CLASSES)
    assert "\n" not in str(raised.value)


def test_no_anchor_at_all_names_every_class() -> None:
    with pytest.raises(DataError, match="anger, fear"):
        class_centroids([], classes=CLASSES)
