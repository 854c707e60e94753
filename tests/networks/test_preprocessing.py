"""Preprocessing against arithmetic by hand and against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from fer_pipeline.networks.preprocessing import Preprocessing

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VGG_FACE = {"mean": (93.594, 104.7624, 129.1863), "std": (1.0, 1.0, 1.0), "scale": 1.0, "channels": "bgr"}
ARCFACE = {"mean": (127.5,) * 3, "std": (128.0,) * 3, "scale": 1.0}


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("settings", "by_hand"),
    [
        (IMAGENET, lambda r, g, b: ((r / 255 - 0.485) / 0.229, (g / 255 - 0.456) / 0.224, (b / 255 - 0.406) / 0.225)),
        (VGG_FACE, lambda r, g, b: (b - 93.594, g - 104.7624, r - 129.1863)),
        (ARCFACE, lambda r, g, b: ((r - 127.5) / 128, (g - 127.5) / 128, (b - 127.5) / 128)),
    ],
)
def test_published_normalisations_by_hand(images, settings, by_hand) -> None:
    found = Preprocessing(size=16, **settings).apply(images)
    expected = np.stack(by_hand(*np.moveaxis(images.astype(np.float64), -1, 0)), axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5, rtol=1e-6)


def test_grey_is_pillows_luma_in_all_channels(images) -> None:
    found = Preprocessing(size=16, grey=True, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0).apply(images)
    luma = np.asarray(Image.fromarray(images[0]).convert("L"), dtype=np.float64)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    assert np.abs(found[0, 0].numpy() - luma).max() <= 1.0  # Pillow cuts to whole numbers


def test_halving_is_the_antialiased_filter_of_pillow() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = Preprocessing(size=16, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0).apply(image)[0].permute(1, 2, 0).numpy()
    pillow = np.asarray(Image.fromarray(image[0]).resize((16, 16), Image.Resampling.BILINEAR), dtype=np.float64)
    assert np.abs(found - pillow).max() < 1.5  # Pillow rounds between its two passes


@pytest.mark.parametrize("settings", [IMAGENET, VGG_FACE, ARCFACE, {}])
def test_restore_undoes_apply(images, settings) -> None:
    preprocessing = Preprocessing(size=16, **settings)
    assert np.array_equal(preprocessing.restore(preprocessing.apply(images)).numpy(), images)


def test_convert_is_the_way_over_pixels(images) -> None:
    face, plain = Preprocessing(size=16, **VGG_FACE), Preprocessing(size=16)
    torch.testing.assert_close(plain.convert(face.apply(images), face), plain.apply(images), atol=1e-5, rtol=1e-5)
    inputs = torch.randn(2, 3, 16, 16)
    assert plain.convert(inputs, plain) is inputs


def test_arrays_and_tensors_are_treated_alike(images) -> None:
    preprocessing = Preprocessing(size=12, **IMAGENET)
    assert torch.equal(preprocessing.apply(images), preprocessing.apply(torch.from_numpy(images)))
