"""The similarity against known motions and the closed form in complex numbers; the warp against pictures drawn anew."""

import hashlib
import math

import numpy as np
import pytest

from fer_pipeline.alignment import aligner
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.alignment.warp import (
    TEMPLATE,
    Border,
    fit_centre,
    fit_similarity,
    scale_template,
    transform_points,
    warp_image,
)

RANDOM = np.random.default_rng(2)


def align_face(image: np.ndarray, landmarks: np.ndarray, *, size: int, border: Border) -> np.ndarray:
    return warp_image(image, fit_similarity(landmarks, scale_template(size)), size=size, border=border)


def turned(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


@pytest.mark.parametrize("angle", [0.0, 0.3, -2.0, math.pi])
def test_a_known_motion_is_found(angle: float) -> None:
    matrix = turned(angle, 0.37, (12.5, -80.0))
    points = RANDOM.uniform(0, 300, (5, 2))
    np.testing.assert_allclose(fit_similarity(points, transform_points(points, matrix)), matrix, atol=1e-9)


def test_noisy_points_give_the_least_squares_of_complex_numbers() -> None:
    """A similarity without reflection is z -> a z + b, whose least squares is one linear problem."""
    for _ in range(20):
        source, target = RANDOM.normal(size=(5, 2)) * 50, RANDOM.normal(size=(5, 2)) * 50
        z, w = source @ [1, 1j], target @ [1, 1j]
        (a, b), *_ = np.linalg.lstsq(np.column_stack([z, np.ones(5)]), w, rcond=None)
        expected = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
        np.testing.assert_allclose(fit_similarity(source, target), expected, atol=1e-9)


def test_a_mirrored_face_is_not_mirrored_back() -> None:
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(fit_similarity(mirrored, TEMPLATE)[:, :2]) > 0


def test_landmarks_in_one_point_are_rejected() -> None:
    with pytest.raises(Rejection, match="bad_landmarks"):
        fit_similarity(np.ones((5, 2)), TEMPLATE)
    with pytest.raises(Rejection, match="bad_landmarks"):
        align_face(np.zeros((50, 50, 3), np.uint8), TEMPLATE * 1000, size=112, border="reflect")


def test_the_template_grows_around_the_edges_of_pixels() -> None:
    np.testing.assert_array_equal(scale_template(112), TEMPLATE)
    np.testing.assert_allclose(scale_template(224), 2 * TEMPLATE + 0.5)
    np.testing.assert_allclose(scale_template(56), TEMPLATE / 2 - 0.25)


def test_a_face_on_the_template_is_returned_as_it_is() -> None:
    image = RANDOM.integers(0, 256, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_array_equal(align_face(image, scale_template(112), size=112, border="reflect"), image)


def waves(height: int, width: int, back: np.ndarray) -> np.ndarray:
    """A smooth picture, drawn where the affine map `back` of each pixel lies."""
    y, x = np.mgrid[:height, :width]
    px, py = transform_points(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float), back).T.reshape(2, height, width)
    return np.stack(
        [127 + 100 * np.sin(px / 17 + 1), 127 + 100 * np.cos(py / 23), 127 + 60 * np.sin((px - py) / 31)], -1
    )


STILL = np.eye(2, 3)


def inverse(matrix: np.ndarray) -> np.ndarray:
    turn = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turn, -turn @ matrix[:, 2]])


@pytest.mark.parametrize(
    "matrix",
    [
        turned(0.2, 1.0, (-30.0, -60.0)),
        turned(-0.4, 0.4, (-10.0, 20.0)),
        turned(0.1, 0.23, (0.0, 0.0)),
        turned(0.0, 1 / 3, (-5.0, -5.0)),
        turned(0.3, 2.5, (-200.0, -300.0)),
    ],
)
def test_a_warped_picture_equals_the_same_drawn_in_place(matrix: np.ndarray) -> None:
    """Shrunk, grown, turned: within 3 grey levels, where the crop lies inside the picture."""
    image = np.rint(waves(420, 400, STILL)).astype(np.uint8)
    found = warp_image(image, matrix, size=64, border="constant").astype(float)
    y, x = np.mgrid[:64, :64]
    source = transform_points(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float), inverse(matrix)).reshape(
        64, 64, 2
    )
    inside = ((source > 12) & (source < (387, 407))).all(axis=-1)
    assert inside.mean() > 0.5
    assert np.abs(found - waves(64, 64, inverse(matrix)))[inside].max() <= 3


def test_what_shrinks_is_antialiased() -> None:
    """A chequerboard of single pixels is grey from afar."""
    y, x = np.mgrid[:400, :400]
    board = np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    found = warp_image(board, turned(0.1, 0.2, (10.0, -10.0)), size=48, border="reflect")
    assert np.abs(found[8:40, 8:40].astype(float) - 127.5).max() <= 3


def test_borders() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, :20] = np.arange(100, 200, 5, dtype=np.uint8)[:, None]
    shifted = turned(0.0, 1.0, (10.0, 0.0))
    constant = warp_image(image, shifted, size=40, border="constant")
    assert not constant[:, :9].any()
    np.testing.assert_array_equal(constant[:, 12:40], image[:, 2:30])
    reflected = warp_image(image, shifted, size=40, border="reflect")
    np.testing.assert_array_equal(reflected[:, :10], image[:, 9::-1])
    np.testing.assert_array_equal(reflected[:, 10:], image[:, :30])


def test_a_small_picture_is_reflected_as_often_as_needed() -> None:
    image = np.repeat(np.arange(0, 200, 50, dtype=np.uint8)[None, :, None], 4, axis=0).repeat(3, axis=2)
    found = warp_image(image, turned(0.0, 1.0, (6.0, 6.0)), size=16, border="reflect")
    row = np.concatenate([image[0, ::-1, 0], image[0, :, 0]])
    np.testing.assert_array_equal(found[3, :, 0], np.concatenate([row, row, row])[6:22])


def test_the_centre_is_the_largest_square() -> None:
    image = RANDOM.integers(0, 256, (60, 100, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        warp_image(image, fit_centre(60, 100, size=60), size=60, border="constant"), image[:, 20:80]
    )


def test_the_bytes_belong_to_the_version() -> None:
    """Crops are kept under `VERSION`: whoever changes their bytes raises it and writes the new hash down."""
    image = np.rint(waves(300, 280, STILL)).astype(np.uint8)
    crop = align_face(
        image, transform_points(scale_template(112), turned(0.15, 1.7, (20.0, 35.0))), size=64, border="reflect"
    )
    assert (aligner.VERSION, hashlib.sha256(crop.tobytes()).hexdigest()[:16]) == (2, "82c47ea6f31b9c4b")
