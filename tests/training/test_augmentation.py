"""Augmentation against slow loops and limiting cases."""

import numpy as np
import pytest
import torch

from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.training.augmentation import (
    Augmentation,
    change_colours,
    erase,
    shift_and_flip,
    turn_and_zoom,
)
from fer_pipeline.training.settings import AugmentSettings

NOTHING = {"flip": 0.0, "translate": 0.0}
SIZE = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (32, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator(9))


def test_nothing_asked_is_nothing_done(images) -> None:
    augmentation = Augmentation(AugmentSettings(**NOTHING), Preprocessing(size=SIZE))
    assert torch.equal(augmentation.random(images, generator()), augmentation.plain(images))


def test_certain_flips_mirror_and_half_of_them_mirror_half(images) -> None:
    flipped = shift_and_flip(images, generator(), translate=0.0, flip=1.0)
    assert torch.equal(flipped, images.flip(2))
    half = shift_and_flip(images, generator(), translate=0.0, flip=0.5)
    same = [torch.equal(a, b) for a, b in zip(half, images, strict=True)]
    assert 8 <= sum(same) <= 24
    assert all(torch.equal(a, b.flip(1)) for a, b, kept in zip(half, images, same, strict=True) if not kept)


def test_shifts_are_windows_of_the_mirrored_image(images) -> None:
    shifted = shift_and_flip(images, generator(), translate=0.2, flip=0.0).numpy()
    padded = np.pad(images.numpy(), ((0, 0), (3, 3), (3, 3), (0, 0)), mode="symmetric")
    seen = set()
    for index in range(len(images)):
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[index, y : y + SIZE, x : x + SIZE], shifted[index])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 10


def test_a_quarter_turn_is_a_quarter_turn(monkeypatch) -> None:
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=generator())
    monkeypatch.setattr("fer_pipeline.training.augmentation._between", lambda n, amount, g: torch.full((n,), amount))
    turned = turn_and_zoom(pixels, generator(), degrees=90, zoom=0.0)
    torch.testing.assert_close(turned, torch.rot90(pixels, 1, (2, 3)), atol=1e-4, rtol=1e-4)


def test_zoom_by_two_shows_the_middle_at_twice_the_size(monkeypatch) -> None:
    pixels = torch.rand(1, 3, SIZE, SIZE, generator=generator())
    monkeypatch.setattr("fer_pipeline.training.augmentation._between", lambda n, amount, g: torch.full((n,), amount))
    zoomed = turn_and_zoom(pixels, generator(), degrees=0, zoom=1.0)
    # At twice the size an output pixel lies a quarter of a pixel beside an input pixel.
    by_hand = 0.75 * pixels[0, :, 8, 8] + 0.25 * pixels[0, :, 8, 7]
    by_hand = 0.75 * by_hand + 0.25 * (0.75 * pixels[0, :, 7, 8] + 0.25 * pixels[0, :, 7, 7])
    torch.testing.assert_close(zoomed[0, :, 8, 8], by_hand, atol=1e-5, rtol=1e-5)


def test_colours_keep_what_they_should(images) -> None:
    pixels = images.permute(0, 3, 1, 2).float() * 0.5 + 60
    bright = change_colours(pixels, generator(), AugmentSettings(brightness=0.3))
    ratio = (bright / pixels).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio.min() > 0.69
    assert ratio.max() < 1.31
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    pale = change_colours(pixels, generator(), AugmentSettings(saturation=0.2))
    torch.testing.assert_close((pale * weights).sum(1), (pixels * weights).sum(1), atol=1e-2, rtol=1e-4)
    assert not torch.allclose(pale, pixels)
    flat = change_colours(pixels, generator(), AugmentSettings(contrast=0.2))
    torch.testing.assert_close((flat * weights).sum(1).mean((1, 2)), (pixels * weights).sum(1).mean((1, 2)))
    assert not torch.allclose(flat, pixels)


def test_certain_grey_is_grey(images) -> None:
    augmentation = Augmentation(AugmentSettings(**NOTHING, grey=1.0), Preprocessing(size=SIZE))
    grey = Preprocessing(size=SIZE, grey=True).apply(images)
    torch.testing.assert_close(augmentation.random(images, generator()), grey)


def test_erased_is_one_rectangle_of_the_wanted_area() -> None:
    inputs = torch.ones(64, 3, 32, 32)
    found = erase(inputs, generator(), AugmentSettings(erase=1.0, erase_area=(0.1, 0.2)))
    for image in found:
        gone = image == 0
        assert torch.equal(gone[0], gone[2])
        rows, columns = gone[0].any(1), gone[0].any(0)
        assert torch.equal(gone[0], rows[:, None] & columns[None, :])
        assert 0.06 < gone.float().mean() < 0.26  # whole pixels, and long ones are cut at the border
    kept = erase(inputs, generator(), AugmentSettings(erase=0.5))
    assert 16 < sum(bool((image == 1).all()) for image in kept) < 48


def test_a_generators_seed_is_the_result(images) -> None:
    everything = AugmentSettings(rotate=9, zoom=0.1, brightness=0.2, contrast=0.2, saturation=0.2, grey=0.2, erase=0.5)
    augmentation = Augmentation(everything, Preprocessing(size=12))
    first, again, other = (augmentation.random(images, generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (32, 3, 12, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
