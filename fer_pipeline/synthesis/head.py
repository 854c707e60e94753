"""Shape a posed head: move a person's face by action units, project its points to pixels, find it under pixels.

Head frame, in head units: x to the right of the picture, y down, origin between the eyes; depth z to the viewer.
What a unit moves follows the descriptions of the FACS manual (Ekman, Friesen and Hager, 2002); how far is ours, chosen
so that full intensity looks strong and not grotesque (AU12 lifts a mouth corner by 0.17, AU1 an inner brow by 0.15).

The head is a stack of ellipses (half width, half depth and centre depth by height) with Gaussian relief on the front
(nose, sockets, cheeks, lips, chin). Projection is orthographic: yaw, then pitch, then roll. A pixel's place on the head
is found by a few fixed-point steps, exact for the smooth head and near enough for the relief.
yaw > 0 turns the face to the right of the picture, pitch > 0 lifts the nose.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Mask, Window
from fer_pipeline.synthesis.people import Activation, Person, Units

Curve = Float[np.ndarray, "points 2"]

_LID = np.linspace(0.0, 1.0, 11)
_LIP = np.linspace(-1.0, 1.0, 17)
_ROWS = 512
_TOP = -1.75
_SMOOTHING = np.ones(25) / 25
# Height, half width and depth of the front surface, for a mean adult; jaw and chin rows are the person's.
_PROFILE = np.array(
    [
        (-1.75, 0.0, 0.05), (-1.7, 0.3, 0.3), (-1.55, 0.6, 0.55), (-1.3, 0.82, 0.76),
        (-1.0, 0.93, 0.86), (-0.6, 0.985, 0.92), (-0.2, 1.0, 0.93), (0.2, 0.99, 0.93),
        (0.5, 0.95, 0.93), (0.8, 0.885, 0.94), (1.05, 0.81, 0.95), (1.25, 0.72, 0.94),
        (1.42, 0.58, 0.91), (1.55, 0.42, 0.87), (1.62, 0.27, 0.81), (1.66, 0.0, 0.7),
    ]
)  # fmt: skip


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
    eyes, brows = (_eye(person, au, 0), _eye(person, au, 1)), (_brow(person, au, 0), _brow(person, au, 1))
    tip = np.array([0.0, person.nose_length - lifted])
    wing = person.nose_width * (1 + 0.15 * au.mean(9)), person.nose_length + 0.05 - 1.2 * lifted
    return Face(eyes, brows, tip, wing, _mouth(person, au, jaw), jaw, units=au, person=person)


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
    bow = 1 - 0.28 * np.exp(-((_LIP / 0.13) ** 2)) + 0.1 * np.exp(-(((across - 0.25) / 0.15) ** 2))
    bow = (1 - across**1.9) * bow
    outer_upper = inner_upper - upper * bow - 0.004
    outer_lower = inner_lower + lower * (1 - across**2.6) + 0.004
    return Mouth(
        *(np.stack([x, height], 1) for height in (outer_upper, inner_upper, inner_lower, outer_lower)),
        gap=float((inner_lower - inner_upper).max()),
        upper_teeth=float(np.clip(0.45 + 0.5 * smile + 0.4 * raised + 0.2 * stretch.mean() - 0.9 * pucker, 0, 1)),
        lower_teeth=float(np.clip(lowered + 0.35 * stretch.mean() - 0.1, 0, 1)),
    )


@dataclass(frozen=True, slots=True)
class View:
    """Pose in radians and where the head lies in the picture."""

    yaw: float
    pitch: float
    roll: float
    centre: tuple[float, float]  # pixels: where the head's origin falls
    unit: float  # pixels of one head unit

    def offsets(self, window: Window) -> tuple[Float[np.ndarray, " w"], Float[np.ndarray, " h"]]:
        """Returns how far each column and each row of a window lies from the head's origin, in head units."""
        columns, rows = np.arange(window.left, window.right), np.arange(window.top, window.bottom)
        return (columns - self.centre[0]) / self.unit, (rows - self.centre[1]) / self.unit


class Head:
    """One posed head; all lengths of the head frame in head units, all pixels as (x, y)."""

    def __init__(self, face: Face, view: View) -> None:
        self.face, self.view = face, view
        self.bumps = _relief(face)
        person, units = face.person, face.units
        y, width, front = _PROFILE.T
        jaw = np.exp(-(((y - 1.05) / 0.42) ** 2)) * (person.jaw - 0.79)
        chin = np.exp(-(((y - 1.5) / 0.22) ** 2)) * (person.chin - 0.43)
        puff = 0.05 * units.mean(34) * np.exp(-(((y - 0.9) / 0.3) ** 2))
        cheeks = 0.035 * person.cheeks * np.exp(-(((y - 0.75) / 0.4) ** 2))
        width = np.where(width > 0, width * person.width + jaw + chin + puff + cheeks, 0.0)
        lower = np.clip((y - 0.25) / 1.41, 0, 1)
        y = np.where(y > 0.25, 0.25 + lower * (person.length - 0.25), y)
        y = y + face.jaw * np.clip((lower - 0.2) / 0.8, 0, 1)
        self._low = float(y[-1])
        self._rows = np.linspace(_TOP, self._low, _ROWS)
        width, front = (
            np.convolve(np.pad(np.interp(self._rows, y, column), 12, mode="edge"), _SMOOTHING, mode="valid")
            for column in (width, front)
        )
        self.width = np.maximum(width, 1e-3).astype(np.float32)
        self.depth = self.width * np.float32(0.92)
        self.middle = front.astype(np.float32) - self.depth
        # The silhouette of each row's ellipse after the yaw: half width, angle of its edge, shift to the side.
        sin, cos = np.sin(view.yaw), np.cos(view.yaw)
        self._reach = np.hypot(self.width * cos, self.depth * sin)
        self._turn = np.arctan2(self.depth * sin, self.width * cos)
        self._shift = self.middle * sin

    def _row(self, y: Float[np.ndarray, "..."]) -> np.ndarray:
        """The index of the profile's row nearest to each height."""
        step = (_ROWS - 1) / (self._low - _TOP)
        return np.clip((y - _TOP) * step + 0.5, 0, _ROWS - 1).astype(np.intp)

    def _relief_at(self, x: Mask, y: Mask, count: int | None = None) -> Mask:
        """How far the first `count` bumps (all if None) stand out at points of the head frame."""
        height = np.zeros_like(x)
        for cx, cy, sx, sy, size in self.bumps[:count]:
            across, down = (x - cx) / sx, (y - cy) / sy
            height += size * np.exp(-(across * across) - down * down)
        return height

    def depth_at(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Returns the depth of the front surface at points of the head frame."""
        row = self._row(points[:, 1])
        side = np.clip(points[:, 0] / self.width[row], -0.999, 0.999)
        base = self.middle[row] + self.depth[row] * np.sqrt(1 - side**2)
        cx, cy, sx, sy, size = self.bumps.T
        across, down = (points[:, :1] - cx) / sx, (points[:, 1:] - cy) / sy
        return base + np.exp(-(across * across) - down * down) @ size

    def project(
        self, points: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"] | float | None = None
    ) -> Float[np.ndarray, "n 2"]:
        """Returns the pixels of points of the head frame, on the surface or at a given depth."""
        x, y = np.asarray(points, np.float64).T
        z = self.depth_at(points) if depth is None else np.broadcast_to(np.asarray(depth, np.float64), len(points))
        sin, cos = np.sin(self.view.yaw), np.cos(self.view.yaw)
        return self.to_pixels(np.column_stack([x * cos + z * sin, self._pitched(x, y, z)]))

    def project_curves(self, *curves: Float[np.ndarray, "_ 2"]) -> list[Float[np.ndarray, "_ 2"]]:
        """Returns the pixels of several curves of the surface, in one pass."""
        ends = np.cumsum([len(curve) for curve in curves])[:-1]
        return np.split(self.project(np.concatenate(curves)), ends)

    def to_pixels(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Returns the pixels of points of the upright picture plane in head units: roll, scale, shift."""
        cos, sin = np.cos(self.view.roll), np.sin(self.view.roll)
        rotated = points @ np.array([[cos, sin], [-sin, cos]])
        return rotated * self.view.unit + np.asarray(self.view.centre)

    def outline(self) -> Float[np.ndarray, "n 2"]:
        """Returns the silhouette in the upright picture plane, from the top down the left side and up the right."""
        rows = np.r_[0:_ROWS:8, _ROWS - 1]
        sides = []
        for sign in (-1.0, 1.0):
            angle = sign * np.pi / 2 - self._turn[rows]
            x, z = self.width[rows] * np.sin(angle), self.middle[rows] + self.depth[rows] * np.cos(angle)
            across = self._shift[rows] + sign * self._reach[rows]
            sides.append(np.column_stack([across, self._pitched(x, self._rows[rows], z)]))
        return np.concatenate([sides[0], sides[1][::-1]])

    def _pitched(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Heights in the upright picture plane of points of the head frame."""
        yaw, pitch = self.view.yaw, self.view.pitch
        return y * np.cos(pitch) - (z * np.cos(yaw) - x * np.sin(yaw)) * np.sin(pitch)

    def surface(self, window: Window) -> tuple[Mask, Mask, Mask]:
        """Finds the place (x, y) on the head under each pixel of a window, and its height towards the viewer.

        Off the head, these are values of its nearest edge.
        """
        view = self.view
        px = (np.arange(window.left, window.right, dtype=np.float32)[None] + 0.5 - view.centre[0]) / view.unit
        py = (np.arange(window.top, window.bottom, dtype=np.float32)[:, None] + 0.5 - view.centre[1]) / view.unit
        (cos, sin), (cos_yaw, sin_yaw), (cos_pitch, sin_pitch) = (
            (np.float32(np.cos(angle)), np.float32(np.sin(angle))) for angle in (view.roll, view.yaw, view.pitch)
        )
        across, down = px * cos + py * sin, py * cos - px * sin
        far = np.full_like(across, 0.9)
        lift = np.zeros_like(across)
        for _ in range(3):
            y = (down + far * sin_pitch) / cos_pitch
            row = self._row(y)
            ratio = (across - lift * sin_yaw - self._shift[row]) / self._reach[row]
            angle = np.arcsin(np.clip(ratio, -1, 1)) - self._turn[row]
            x = self.width[row] * np.sin(angle)
            z = self.middle[row] + self.depth[row] * np.cos(angle)
            lift = self._relief_at(x, y, 4)  # parallax of the nose alone: nothing else stands out far enough
            far = (z + lift) * cos_yaw - x * sin_yaw
        far = (z + self._relief_at(x, y)) * cos_yaw - x * sin_yaw
        return x, y, far * cos_pitch + y * sin_pitch


def _relief(face: Face) -> Float[np.ndarray, "bumps 5"]:
    """Rows of (x, y, width, height, size); the nose comes first."""
    person, au = face.person, face.units
    tip, (wing, wing_y) = face.nose_tip[1], face.nose_wing
    rows = [
        (0.0, 0.18, 0.11, 0.3, 0.55 * person.nose_height),
        (0.0, tip - 0.02, 0.13, 0.15, 0.72 * person.nose_height),
        (-0.62 * wing, wing_y - 0.02, 0.085, 0.09, 0.33 * person.nose_height),
        (0.62 * wing, wing_y - 0.02, 0.085, 0.09, 0.33 * person.nose_height),
        (0.0, person.mouth_y + 0.1 * face.jaw, 0.42, 0.26, 0.06),  # lips
        (0.0, -0.95, 0.6, 0.35, 0.03),  # forehead
        (0.0, float(face.mouth.outer_lower[8, 1]) + 0.08, 0.2, 0.07, -0.045),  # below the lower lip
        (0.0, person.length - 0.2 + face.jaw, 0.2, 0.14, 0.07 + 0.05 * au.mean(17)),  # chin
    ]
    for side, sign in enumerate((-1.0, 1.0)):
        cheek, pull, puff = (float(au[unit][side]) for unit in (6, 12, 34))
        brow_x, brow_y = face.brows[side][3].tolist()
        rows += [
            (sign * person.eye_x, 0.02, 0.27, 0.15, -0.13),  # socket
            (sign * 0.2, -0.02, 0.09, 0.13, -0.07),  # beside the root of the nose
            (sign * person.eye_x, 0.005, 0.15, 0.1, 0.075),  # eyeball
            (brow_x, brow_y + 0.03, 0.3, 0.09, 0.05),
            (sign * 0.56, 0.5 - 0.07 * cheek - 0.04 * pull, 0.24, 0.2, 0.05 + 0.05 * cheek + 0.05 * pull),  # cheekbone
            (sign * 0.6, 1.0, 0.17, 0.22, -0.04 + 0.05 * person.cheeks + 0.14 * puff),  # cheek
            (sign * 0.86, -0.35, 0.2, 0.3, -0.05),  # temple
        ]
    return np.array(rows, np.float32)
