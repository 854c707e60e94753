"""Preprocessing against arithmetic by hand and against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage

from fer_pipeline.networks.preprocessing import Normalisation, Preprocessing, Template

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


PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "scale": 1.0}
CHIP = Template(side=150, matrix=((1.653, -0.014, -17.785), (0.014, 1.653, -36.484)))  # dlib's


def test_a_template_is_the_affine_of_scipy() -> None:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (112, 112, 3)), (2, 2, 0))
    image = smooth.astype(np.uint8)
    found = Preprocessing(size=150, template=CHIP, **PLAIN).apply(image[None])[0].numpy()
    (a, b, x0), (c, d, y0) = CHIP.matrix
    back = np.linalg.inv(np.array([[a, b], [c, d]]))
    rows_first = back[::-1, ::-1]  # scipy's coordinates are (row, column)
    offset = -rows_first @ np.array([y0, x0])
    for channel in range(3):
        expected = ndimage.affine_transform(
            image[..., channel].astype(float), rows_first, offset, (150, 150), order=1, mode="nearest"
        )
        np.testing.assert_allclose(found[channel], expected, atol=0.02)


def test_a_template_means_the_same_face_at_any_size_of_crop_and_input(images) -> None:
    """A template that takes the middle half: of a crop twice as large it is twice as many pixels."""
    middle = Template(side=56, matrix=((1.0, 0.0, -28.0), (0.0, 1.0, -28.0)))
    picture = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    found = Preprocessing(size=112, template=middle, **PLAIN).apply(picture)
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), picture[0, 56:168, 56:168], atol=1e-2)
    halved = Preprocessing(size=56, template=middle, **PLAIN).apply(picture)
    expected = Preprocessing(size=56, **PLAIN).apply(picture[:, 56:168, 56:168])
    assert torch.max(torch.abs(halved - expected)[..., 1:-1, 1:-1]) < 1e-2  # the filter's border sees more


def test_the_template_of_the_crop_is_no_template(images) -> None:
    whole = Template(side=112, matrix=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    torch.testing.assert_close(
        Preprocessing(size=16, template=whole).apply(images), Preprocessing(size=16).apply(images), atol=1e-4, rtol=0
    )


def test_convert_goes_back_from_one_template_to_another() -> None:
    image = np.broadcast_to(np.linspace(0, 255, 112).astype(np.uint8)[:, None], (1, 112, 112, 3)).copy()
    chip, plain = Preprocessing(size=150, template=CHIP), Preprocessing(size=112)
    found, expected = plain.convert(chip.apply(image), chip), plain.apply(image)
    inside = (slice(None), slice(None), slice(30, 105), slice(20, 95))  # what lies in both
    assert torch.max(torch.abs(found - expected)[inside]) < 0.02
    same = chip.model_copy(update={"size": 75})  # of one template only the size changes
    torch.testing.assert_close(same.convert(chip.apply(image), chip), same.apply(image), atol=0.03, rtol=0)


def test_what_has_no_template_is_written_as_before() -> None:
    """A card, a key or a distilled set of before knows no template."""
    dumped = Preprocessing(size=16).model_dump(mode="json")
    assert list(dumped) == ["mean", "std", "channels", "scale", "size", "grey"]
    assert "template" not in Normalisation().model_dump_json()
    chip = Preprocessing(size=16, template=CHIP)
    assert Preprocessing.model_validate_json(chip.model_dump_json()) == chip
    assert Normalisation.model_validate(chip.model_dump(exclude={"size", "grey"})).template == CHIP


@pytest.mark.parametrize("matrix", [((1, 0, 0), (0, -1, 0)), ((0, 0, 0), (0, 0, 0)), ((1e9, 0, 0), (0, 1, 0))])
def test_a_template_that_is_no_crop_is_refused(matrix) -> None:
    with pytest.raises(ValidationError, match=r"enlarge areas by 0\.01 to 10,000"):
        Template(side=112, matrix=matrix)
