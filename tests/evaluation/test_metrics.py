"""Hand-made confusions, scikit-learn as the second implementation, and classes that a test set lacks."""

import numpy as np
import pytest
from sklearn import metrics as sk

from fer_pipeline.evaluation.metrics import (
    METRICS,
    all_metrics,
    class_accuracies,
    class_f1,
    confusion_matrix,
    measure,
    row_shares,
)

CLASSES = ("anger", "happiness", "sadness")
#             anger  happiness  sadness (predicted)
BY_HAND = np.array([[3, 1, 0], [2, 6, 2], [0, 0, 0]])


def test_confusion_has_actual_rows_and_predicted_columns() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 1, 1, 1, 0, 2])
    expected = [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    assert confusion_matrix(labels, predicted, num_classes=3).tolist() == expected
    assert confusion_matrix(labels[:0], predicted[:0], num_classes=2).tolist() == [[0, 0], [0, 0]]


def test_figures_by_hand_with_an_absent_class() -> None:
    """Recalls 3/4 and 6/10; the third class has no sample and takes part in nothing but the misses."""
    found = measure(BY_HAND, classes=CLASSES)
    assert found.absent == ("sadness",)
    assert found.num_samples == 14
    assert found.accuracy == pytest.approx(9 / 14)
    assert found.class_accuracies == pytest.approx({"anger": 0.75, "happiness": 0.6})
    assert found.supports == {"anger": 4, "happiness": 10, "sadness": 0}
    assert found.mean_class_accuracy == pytest.approx(0.675)
    assert found.class_accuracy_sd == pytest.approx(0.075)  # population: both lie 0.075 off the mean
    assert found.macro_f1 == pytest.approx((2 * 3 / (4 + 5) + 2 * 6 / (10 + 7)) / 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("present", [7, 4])
def test_against_scikit_learn(seed: int, present: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(present), rng.integers(0, present, 200)])
    predicted = np.where(rng.random(len(labels)) < 0.6, labels, rng.integers(0, 7, len(labels)))
    confusion = confusion_matrix(labels, predicted, num_classes=7)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, predicted, labels=range(7)))
    here = list(range(present))
    found = measure(confusion, classes=tuple("abcdefg"))
    recalls = sk.recall_score(labels, predicted, labels=here, average=None, zero_division=0)
    assert found.accuracy == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found.mean_class_accuracy == pytest.approx(np.mean(recalls))
    assert found.class_accuracy_sd == pytest.approx(np.std(recalls))
    assert found.macro_f1 == pytest.approx(
        sk.f1_score(labels, predicted, labels=here, average="macro", zero_division=0)
    )
    np.testing.assert_allclose(row_shares(confusion)[:present].sum(-1), 1)


def test_a_stack_equals_its_members_one_by_one() -> None:
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 9, (3, 2, 4, 4))
    stack[1, 1, 2] = 0
    together = all_metrics(stack)
    assert together.shape == (3, 2, len(METRICS))
    for index in np.ndindex(3, 2):
        alone = measure(stack[index], classes=tuple("abcd"))
        np.testing.assert_allclose(together[index], [getattr(alone, name) for name in METRICS])


def test_empty_confusion_is_nan_and_quiet() -> None:
    assert np.isnan(all_metrics(np.zeros((4, 4), int))).all()
    assert np.isnan(class_accuracies(BY_HAND)[2])
    assert np.isnan(class_f1(BY_HAND)[2])
