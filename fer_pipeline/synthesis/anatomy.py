"""Move a person's face by action units: the curves that are drawn and how far they shift.

Head frame, in head units: x to the right of the picture, y down, origin between the eyes; depth comes from `head`.
What a unit moves follows the descriptions of the FACS manual (Ekman, Friesen and Hager, 2002); how far is ours, chosen
so that full intensity looks strong and not grotesque (AU12 lifts a mouth corner by 0.17, AU1 an inner brow by 0.15).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.expressions import Activation, Units
from fer_pipeline.synthesis.people import Person

Curve = Float[np.ndarray, "points 2"]

_LID = np.linspace(0.0, 1.0, 11)
_LIP = np.linspace(-1.0, 1.0, 17)


@dataclass(frozen=True, slots=True)
class Eye:
    """One eye; curves run from the inner to the outer corner."""

    upper: Curve
    lower: Curve
    centre: Float[np.ndarray, " 2"]  # of the eyeball, where the iris rests
    opening: float  # height between the lids


@dataclass(frozen=True, slots=True)
class Mouth:
    """Lip outlines from the left to the right corner, and what is seen between them."""

    outer_upper: Curve
    inner_upper: Curve
    inner_lower: Curve
    outer_lower: Curve
    gap: float
    upper_teeth: float
    lower_teeth: float


@dataclass(frozen=True, slots=True)
class Face:
    """Everything that expression and identity shape; pairs are (left, right) in the picture."""

    eyes: tuple[Eye, Eye]
    brows: tuple[Curve, Curve]  # centre lines from the inner to the outer end
    nose_tip: Float[np.ndarray, " 2"]
    nose_wing: tuple[float, float]  # half width and height of the wings
    mouth: Mouth
    jaw: float  # how far the chin has dropped
    units: Units
    person: Person

    def landmarks(self) -> Float[np.ndarray, "5 2"]:
        """Returns left eye, right eye, nose tip, left and right mouth corner in the head frame."""
        corners = [self.mouth.outer_upper[0], self.mouth.outer_upper[-1]]
        return np.array([self.eyes[0].centre, self.eyes[1].centre, self.nose_tip, *corners])


def pose_face(person: Person, aus: Activation) -> Face:
    """Returns the face of a person while it performs the action units."""
    au = Units(aus)
    jaw, lifted = 0.31 * au.mean(26), 0.05 * au.mean(9)
    return Face(
        eyes=(_eye(person, au, 0), _eye(person, au, 1)),
        brows=(_brow(person, au, 0), _brow(person, au, 1)),
        nose_tip=np.array([0.0, person.nose_length - lifted]),
        nose_wing=(person.nose_width * (1 + 0.15 * au.mean(9)), person.nose_length + 0.05 - 1.2 * lifted),
        mouth=_mouth(person, au, jaw),
        jaw=jaw,
        units=au,
        person=person,
    )


def _eye(person: Person, au: Units, side: int) -> Eye:
    sign = -1.0 if side == 0 else 1.0
    raised, tight, cheek, closed = (float(au[unit][side]) for unit in (5, 7, 6, 43))
    rest = person.eye_open * (1 - person.lid_rest)
    top = rest * max(0.15, 1 + 0.75 * raised - 0.38 * tight - 0.2 * cheek) * (1 - 0.97 * closed)
    bottom = 0.7 * rest * max(0.0, 1 - 0.55 * tight - 0.6 * cheek + 0.12 * raised) * (1 - 0.2 * closed)
    if closed > 0:
        top = top * (1 - closed) - 0.75 * bottom * closed  # the lids meet low
    x = sign * (person.eye_x + person.eye_width * (2 * _LID - 1))
    corners = 0.012 - (person.eye_tilt + 0.012) * 2 * (_LID - 0.5)
    bow = np.sin(np.pi * _LID**0.88) ** 0.75
    sag = np.sin(np.pi * _LID**1.15) ** 0.85
    upper = np.stack([x, corners - top * bow], 1)
    lower = np.stack([x, corners + np.maximum(bottom, 0.004 - top) * sag], 1)
    centre = np.array([sign * person.eye_x, 0.3 * (bottom - rest * 0.7) - 0.006])
    return Eye(upper=upper, lower=lower, centre=centre, opening=max(top + bottom, 0.0))


def _brow(person: Person, au: Units, side: int) -> Curve:
    sign = -1.0 if side == 0 else 1.0
    inner, outer, lower, nose = (float(au[unit][side]) for unit in (1, 2, 4, 9))
    t = np.linspace(0.0, 1.0, 9)
    x = 0.17 + (person.eye_x + person.eye_width + 0.05 - 0.17) * t
    x = x - (1 - t) ** 1.5 * (0.055 * lower + 0.02 * nose)  # AU4 draws the brows together
    arch = person.brow_arch * np.sin(np.pi * np.clip(t * 0.78, 0, 1)) ** 1.2 * (1 - 0.4 * lower)
    rest = person.brow_y + person.brow_rest - person.brow_tilt * (2 * t - 1) + 0.045 * np.clip(t - 0.6, 0, 1)
    raised = 0.15 * inner * (1 - t) ** 1.2 + 0.16 * outer * np.sin(np.pi * (0.12 + 0.62 * t)) ** 2 + 0.05 * outer * t
    lowered = lower * (0.115 * (1 - t) ** 0.8 + 0.035) * (1 - 0.75 * inner) + 0.07 * nose * (1 - t)
    cheek = 0.015 * float(au[6][side])
    return np.stack([sign * x, rest - arch - raised + lowered + cheek], 1)


def _mouth(person: Person, au: Units, jaw: float) -> Mouth:
    pull, dimple, depress, stretch = (au[unit] for unit in (12, 14, 15, 20))
    pucker, tight, press = au.mean(18), au.mean(23), au.mean(24)
    reach = person.mouth_width * (1 - 0.38 * pucker - 0.13 * tight - 0.06 * press) - 0.12 * jaw
    reach = reach + 0.1 * pull + 0.095 * stretch + 0.035 * dimple + 0.01 * depress
    chin_up = 0.05 * au.mean(17)
    level = person.mouth_y - chin_up - 0.02 * au.mean(9)
    corner_y = level + 0.3 * jaw + person.corner_rest - 0.17 * pull + 0.11 * depress + 0.03 * stretch - 0.03 * dimple

    parted, raised = au.mean(25), au.mean(10) + 0.6 * au.mean(9)
    lowered = au.mean(16)
    sealed = 1 - 0.85 * press
    gap_up = (0.015 * parted + 0.05 * raised * (0.35 + 0.65 * parted) + 0.22 * jaw) * sealed
    gap_low = (0.06 * parted + 0.08 * lowered + 0.78 * jaw) * sealed
    thin = 1 - 0.45 * tight - 0.6 * press
    smile = float(pull.mean())
    upper = person.lip_upper * thin * (1 - 0.25 * smile - 0.1 * raised + 0.25 * pucker)
    lower = person.lip_lower * thin * (1 - 0.2 * smile + 0.2 * pucker + 0.15 * lowered)

    x = np.where(_LIP < 0, reach[0], reach[1]) * _LIP
    across = np.abs(_LIP)
    corner = np.where(_LIP < 0, corner_y[0], corner_y[1])
    middle = level + 0.3 * jaw - 0.03 * smile
    line = middle + (corner - middle) * across**1.8 + 0.006 * np.cos(3 * np.pi * _LIP) * (1 - across)
    lift = 0.045 * raised * (1 - across**2)
    inner_upper = line - gap_up * (1 - across**2.2) - lift
    inner_lower = line + gap_low * (1 - across**2.4) - lift * (1 - min(1.0, 3 * parted))
    bow = (1 - across**1.9) * (
        1 - 0.28 * np.exp(-((_LIP / 0.13) ** 2)) + 0.1 * np.exp(-(((across - 0.25) / 0.15) ** 2))
    )
    outer_upper = inner_upper - upper * bow - 0.004
    outer_lower = inner_lower + lower * (1 - across**2.6) + 0.004
    gap = float((inner_lower - inner_upper).max())
    return Mouth(
        outer_upper=np.stack([x, outer_upper], 1),
        inner_upper=np.stack([x, inner_upper], 1),
        inner_lower=np.stack([x, inner_lower], 1),
        outer_lower=np.stack([x, outer_lower], 1),
        gap=gap,
        upper_teeth=float(np.clip(0.45 + 0.5 * smile + 0.4 * raised + 0.2 * stretch.mean() - 0.9 * pucker, 0, 1)),
        lower_teeth=float(np.clip(lowered + 0.35 * stretch.mean() - 0.1, 0, 1)),
    )
