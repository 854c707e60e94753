"""Batches in two buffers: each comes back once, in order and whole, on a CPU and on a GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fer_pipeline.embedding.features import BATCHES_AHEAD, compute_overlapped

DEVICES = [
    pytest.param("cpu"),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")],
    ),
]


def sums(images: torch.Tensor) -> torch.Tensor:
    """Sum and largest pixel of each picture: whole numbers, exact on any device."""
    flat = images.flatten(1).float()
    return torch.stack([flat.sum(1), flat.amax(1)], dim=1)


def batches(sizes: list[int], side: int = 6) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (size, side, side, 3), dtype=np.uint8) for size in sizes]


def truth(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    return np.stack([flat.sum(1), flat.max(1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [[], [5], [8, 8], [8, 8, 8, 8, 8, 3], [1, 8, 2]])
def test_every_batch_comes_back_in_order(device: str, sizes: list[int]) -> None:
    given = batches(sizes)
    found = list(compute_overlapped(given, sums, device=torch.device(device)))
    assert len(found) == len(given)
    for images, features in zip(given, found, strict=True):  # all were kept: no buffer's memory was handed out
        np.testing.assert_array_equal(features, truth(images))


@pytest.mark.parametrize("device", DEVICES)
def test_crops_of_another_size_get_buffers_of_their_own(device: str) -> None:
    given = batches([4, 4, 4], 6) + batches([4, 4], 9) + batches([2], 6)
    found = compute_overlapped(given, sums, device=torch.device(device))
    for images, features in zip(given, found, strict=True):
        np.testing.assert_array_equal(features, truth(images))


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_asked_for_one_turn_ahead(device: str) -> None:
    asked = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal asked
        for images in batches([4] * 6):
            asked += 1
            yield images

    found = compute_overlapped(source(), sums, device=torch.device(device))
    next(found)
    assert asked == BATCHES_AHEAD + 1
    assert len(list(found)) == 5


def test_a_batch_that_is_not_contiguous() -> None:
    mirrored = batches([8])[0][::-1, :, ::-1]
    (found,) = compute_overlapped([mirrored], sums, device=torch.device("cpu"))
    np.testing.assert_array_equal(found, truth(mirrored))
