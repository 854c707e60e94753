"""The prototypes are those of EMFACS, and every unit moves what it should, where it should."""

import dataclasses

import numpy as np
import pytest

from fer_pipeline.synthesis.head import Face, Head, View, pose_face
from fer_pipeline.synthesis.people import (
    ORDER,
    PROTOTYPES,
    UNITS,
    Person,
    Population,
    Units,
    activation,
    draw_person,
    prototype,
)
from fer_pipeline.synthesis.skin import creases


@pytest.fixture(scope="module")
def person() -> Person:
    plain = draw_person(np.random.default_rng(3), Population(spread=0.0))
    return dataclasses.replace(plain, corner_rest=0.0, brow_rest=0.0)


def face(person: Person, *, side: int | None = None, **units: float) -> Face:
    return pose_face(person, activation({int(name[2:]): value for name, value in units.items()}, side=side))


def test_prototypes_are_those_of_emfacs() -> None:
    published = {
        "anger": {4, 5, 7, 23},
        "disgust": {9, 15, 16},
        "fear": {1, 2, 4, 5, 20, 26},
        "happiness": {6, 12},
        "neutral": set(),
        "sadness": {1, 4, 15},
        "surprise": {1, 2, 5, 26},
        "contempt": {12, 14},
    }
    assert {name: set(units) for name, units in PROTOTYPES.items()} == published
    assert PROTOTYPES["surprise"][5] < PROTOTYPES["fear"][5]  # 5B: a slight upper lid raise


def test_a_prototype_scales_with_intensity_and_contempt_has_one_side() -> None:
    half, full = prototype("fear", 0.5), prototype("fear", 1.0)
    np.testing.assert_allclose(2 * half, full)
    assert Units(full).mean(20) == pytest.approx(1.0)
    left = prototype("contempt", 1.0, side=0)
    assert left[:, 0].sum() == pytest.approx(1.55)
    assert left[:, 1].sum() == 0
    assert set(ORDER) == set(UNITS)


def corners(of: Face) -> np.ndarray:
    return of.landmarks()[3:]


def test_au12_raises_and_widens_the_mouth_corners(person: Person) -> None:
    moved = corners(face(person, au12=1.0)) - corners(face(person))
    assert (moved[:, 1] < -0.1).all()  # y grows downwards
    assert moved[0, 0] < -0.05
    assert moved[1, 0] > 0.05


def test_au12_on_one_side_leaves_the_other(person: Person) -> None:
    moved = corners(face(person, side=1, au12=1.0)) - corners(face(person))
    assert moved[1, 1] < -0.1
    np.testing.assert_allclose(moved[0], 0, atol=1e-6)


def test_au15_lowers_and_au20_stretches_the_corners(person: Person) -> None:
    assert (corners(face(person, au15=1.0)) - corners(face(person)))[:, 1].min() > 0.05
    stretched = corners(face(person, au20=1.0)) - corners(face(person))
    assert stretched[0, 0] < -0.05
    assert stretched[1, 0] > 0.05


def test_au18_and_au23_narrow_the_mouth(person: Person) -> None:
    def width(of: Face) -> float:
        return float(np.ptp(corners(of)[:, 0]))

    assert width(face(person, au18=1.0)) < width(face(person, au23=1.0)) < width(face(person))


def lips(of: Face) -> float:
    return float((of.mouth.inner_upper[8] - of.mouth.outer_upper[8])[1])


def test_au23_and_au24_thin_the_lips(person: Person) -> None:
    assert lips(face(person, au24=1.0)) < lips(face(person, au23=1.0)) < lips(face(person))


def test_au26_opens_the_mouth_and_lowers_the_jaw(person: Person) -> None:
    rest, slight, wide = (face(person, au26=strength) for strength in (0.0, 0.5, 1.0))
    assert rest.mouth.gap < 0.02 < slight.mouth.gap < wide.mouth.gap
    assert rest.jaw == 0 < slight.jaw < wide.jaw
    assert wide.mouth.outer_lower[8, 1] > rest.mouth.outer_lower[8, 1] + 0.15


def test_au25_parts_and_au10_raises_the_lip(person: Person) -> None:
    assert face(person, au25=1.0).mouth.gap > face(person).mouth.gap + 0.04
    assert face(person, au10=1.0).mouth.outer_upper[8, 1] < face(person).mouth.outer_upper[8, 1] - 0.03


def test_brows(person: Person) -> None:
    def brow(**units: float) -> np.ndarray:
        return face(person, **units).brows[1] - face(person).brows[1]

    inner, outer = 0, -2
    assert brow(au1=1.0)[inner, 1] < -0.1 < -0.05 < brow(au1=1.0)[outer, 1]
    assert brow(au2=1.0)[outer, 1] < -0.05 < -0.03 < brow(au2=1.0)[inner, 1]
    assert brow(au4=1.0)[inner, 1] > 0.05
    assert brow(au4=1.0)[inner, 0] < -0.03  # drawn together: the right brow's inner end goes left


def test_lids(person: Person) -> None:
    def opening(**units: float) -> float:
        return face(person, **units).eyes[0].opening

    assert opening(au5=1.0) > 1.3 * opening()
    assert opening(au7=1.0) < 0.75 * opening()
    assert opening(au6=1.0) < opening()
    assert opening(au43=1.0) < 0.1 * opening()


def test_au9_shortens_the_nose(person: Person) -> None:
    assert face(person, au9=1.0).nose_tip[1] < face(person).nose_tip[1] - 0.03


def test_every_unit_moves_or_creases_something(person: Person) -> None:
    view = View(yaw=0.0, pitch=0.0, roll=0.0, centre=(64.0, 60.0), unit=30.0)

    def shape(aus: np.ndarray) -> np.ndarray:
        posed = pose_face(person, aus)
        head = Head(posed, view)
        outlines = [posed.eyes[0].upper, posed.eyes[0].lower, posed.brows[0], posed.mouth.outer_upper, head.outline()]
        folds = np.array([strength for _, _, strength in creases(posed)])
        return np.concatenate([*(outline.ravel() for outline in outlines), posed.mouth.inner_lower.ravel(), folds])

    rest = shape(activation({}))
    for unit in ORDER:
        assert np.abs(shape(activation({unit: 1.0})) - rest).max() > 0.02, f"AU{unit} does nothing"
