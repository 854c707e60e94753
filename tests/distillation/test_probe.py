"""The probe on images whose classes can, or cannot, be recognised: limiting cases, and the split counted by hand."""

import numpy as np

from fer_pipeline.distillation.probe import leave_out_images, leave_out_moments, probe
from fer_pipeline.distillation.settings import ProbeSettings

CLASSES = 4
LABELS = np.tile(np.arange(CLASSES, dtype=np.int64), (2, 1))  # two steps: two images per class


def _moments(pattern: float, noise: float) -> dict[int, np.ndarray]:
    draw = np.random.default_rng(0)
    colour = draw.normal(size=(CLASSES, 3, 1, 1))
    shape = (2, CLASSES, 3, 16, 16)
    return {10 * (k + 1): (pattern * colour + noise * draw.normal(size=shape)).astype(np.float32) for k in range(6)}


def test_a_class_pattern_is_found_on_saved_and_on_unseen_images() -> None:
    found = probe(_moments(3.0, 0.3), LABELS, ProbeSettings(), num_classes=CLASSES, seed=1)
    assert found["moments"] == [10, 20, 30, 40, 50, 60]
    assert found["reason"] == ""
    for name in ("saved_image", "unseen_image"):
        assert len(found[name]) == 3
        assert all([point["epoch"] for point in curve] == list(range(1, 41)) for curve in found[name])
        assert np.mean([curve[-1]["test"] for curve in found[name]]) > 0.95


def test_pure_noise_stays_at_chance() -> None:
    """Fresh noise at every moment holds no pattern: the training part is learned by heart, the test part is not."""
    settings = ProbeSettings(seeds=12)
    found = probe(_moments(0.0, 1.0), LABELS, settings, num_classes=CLASSES, seed=1)
    test = np.mean([curve[-1]["test"] for curve in found["saved_image"]])
    train = np.mean([curve[-1]["train"] for curve in found["saved_image"]])
    assert train > 0.9
    assert abs(test - 0.25) < 4 * np.sqrt(0.25 * 0.75 / (12 * 8))


def test_too_few_moments_are_said_in_one_line() -> None:
    few = dict(list(_moments(1.0, 0.1).items())[:3])
    found = probe(few, LABELS, ProbeSettings(), num_classes=CLASSES, seed=1)
    assert found["reason"].startswith("the probe needs 6 saved moments and found 3")
    assert found["saved_image"] == []


def test_many_moments_are_thinned_evenly() -> None:
    images = np.zeros((1, CLASSES, 3, 8, 8), np.float32)
    saved = {epoch: images for epoch in range(1, 12)}
    found = probe(saved, LABELS[:1], ProbeSettings(epochs=1, seeds=1), num_classes=CLASSES, seed=1)
    assert found["moments"] == [1, 3, 5, 7, 9, 11]
    assert found["unseen_image"] == []  # one image per class: none could be left out


def test_the_split_is_five_to_one() -> None:
    held = leave_out_moments(6, 7, np.random.default_rng(3))
    assert held.sum(0).tolist() == [1] * 7  # 35 train, 7 test, as the paper's 42


def test_left_out_images_cover_every_class() -> None:
    chains = np.repeat(np.arange(3, dtype=np.int64), 12)
    held = leave_out_images(chains, 3, np.random.default_rng(3))
    assert np.bincount(chains[held], minlength=3).tolist() == [2, 2, 2]
