"""Projection against rotations done by hand, and surface maps against projection."""

import numpy as np
import pytest

from fer_pipeline.synthesis.canvas import Window
from fer_pipeline.synthesis.head import Face, Head, View, pose_face
from fer_pipeline.synthesis.people import Population, activation, draw_person


@pytest.fixture(scope="module")
def face() -> Face:
    return pose_face(draw_person(np.random.default_rng(0), Population()), activation({}))


def view(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> View:
    return View(yaw=np.deg2rad(yaw), pitch=np.deg2rad(pitch), roll=np.deg2rad(roll), centre=(64.0, 60.0), unit=30.0)


def test_a_frontal_head_is_scaled_and_shifted(face: Face) -> None:
    points = np.array([[0.5, -0.2], [-0.3, 1.0]])
    np.testing.assert_allclose(Head(face, view()).project(points), points * 30 + [64, 60], atol=1e-9)


def test_rotations_by_hand(face: Face) -> None:
    point = np.array([[0.0, 0.0]])
    turned = Head(face, view(yaw=30)).project(point, 1.0)[0]
    np.testing.assert_allclose(turned, [64 + 30 * 0.5, 60], atol=1e-9)  # sin 30°: towards the right of the picture
    lifted = Head(face, view(pitch=30)).project(point, 1.0)[0]
    np.testing.assert_allclose(lifted, [64, 60 - 30 * 0.5], atol=1e-9)  # looking up lifts what is in front
    rolled = Head(face, view(roll=90)).project(np.array([[1.0, 0.0]]), 0.0)[0]
    np.testing.assert_allclose(rolled, [64, 60 + 30], atol=1e-9)  # clockwise in the picture


@pytest.mark.parametrize("pose", [(0, 0, 0), (18, 0, 0), (0, 10, 0), (-12, 8, 15)])
def test_pixels_find_the_place_that_projects_onto_them(face: Face, pose: tuple[float, float, float]) -> None:
    head = Head(face, view(*pose))
    x, y, _ = head.surface(Window(30, 10, 98, 110))
    rows, columns = np.array([[20, 45], [50, 20], [50, 45], [70, 30]]).T  # forehead, eyes, cheek
    places = np.stack([x[rows, columns], y[rows, columns]], 1)
    pixels = head.project(places.astype(np.float64))
    expected = np.stack([columns + 30.5, rows + 10.5], 1)
    assert np.abs(pixels - expected).max() < 3.0  # a tenth of a head unit: relief other than the nose has no parallax


def test_the_nose_stands_out(face: Face) -> None:
    head = Head(face, view())
    tip, cheek = head.depth_at(np.array([face.nose_tip, [0.5, face.nose_tip[1]]]))
    assert tip > cheek + 0.2


def test_a_dropped_jaw_lengthens_the_outline() -> None:
    person = draw_person(np.random.default_rng(0), Population())
    closed, dropped = (
        Head(pose_face(person, activation({26: strength})), view()).outline()[:, 1].max() for strength in (0.0, 1.0)
    )
    assert dropped > closed + 0.2
