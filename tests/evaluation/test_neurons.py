"""Entropies by hand, and strongest faces against plain sorting, whatever the batches are."""

import numpy as np
import pytest

from fer_pipeline.evaluation.neurons import Strongest, entropy, low_threshold


def test_entropy_by_hand() -> None:
    counts = np.array([[4, 0, 0, 0], [1, 1, 1, 1], [2, 1, 1, 0], [0, 3, 1, 0]])
    half_and_quarters = 0.5 * np.log(2) + 2 * 0.25 * np.log(4)
    three_to_one = np.log(4) - 0.75 * np.log(3)
    assert entropy(counts) == pytest.approx([0, np.log(4), half_and_quarters, three_to_one])


@pytest.mark.parametrize("sizes", [(50,), (1, 30, 19), (5, 45)])
def test_strongest_faces_by_sorting(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    responses = rng.integers(0, 6, (50, 20)).astype(np.float32)  # many are equal
    responses[:, 3] = 2.5
    labels = rng.integers(0, 4, 50)
    found = Strongest(8)
    for batch in np.split(responses, np.cumsum(sizes)[:-1]):
        found.add(batch)
    assert found.faces is not None
    for neuron in range(20):
        order = sorted(range(50), key=lambda face: (-responses[face, neuron], face))[:8]
        assert found.faces[neuron].tolist() == order
        expected = entropy(np.bincount(labels[order], minlength=4)[None])[0] if neuron != 3 else np.nan
        value = found.entropies(labels, num_classes=4)[neuron]
        assert value == pytest.approx(expected, nan_ok=True)


def test_low_is_below_the_smallest_mean_of_the_layers() -> None:
    layers = {"a": np.array([1.0, 1.0, 0.4]), "b": np.array([0.2, 1.0, np.nan]), "c": np.full(2, np.nan)}
    assert low_threshold(layers) == pytest.approx(0.6)
    assert np.isnan(low_threshold({"c": np.full(2, np.nan)}))
