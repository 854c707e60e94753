"""Model the posed head as a solid: project its points to pixels and find its surface under pixels.

The head is a stack of ellipses (half width, half depth and centre depth by height) with Gaussian relief on the front
(nose, sockets, cheeks, lips, chin). Projection is orthographic: yaw, then pitch, then roll. A pixel's place on the head
is found by a few fixed-point steps, exact for the smooth head and near enough for the relief.
Depth z points to the viewer; yaw > 0 turns the face to the right of the picture, pitch > 0 lifts the nose.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.anatomy import Face
from fer_pipeline.synthesis.canvas import Mask, Window

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

    def _relief_at(
        self, x: Float[np.ndarray, "*s"], y: Float[np.ndarray, "*s"], count: int | None = None
    ) -> Float[np.ndarray, "*s"]:
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
        cos, sin = np.float32(np.cos(view.roll)), np.float32(np.sin(view.roll))
        across, down = px * cos + py * sin, py * cos - px * sin
        cos_yaw, sin_yaw = np.float32(np.cos(view.yaw)), np.float32(np.sin(view.yaw))
        cos_pitch, sin_pitch = np.float32(np.cos(view.pitch)), np.float32(np.sin(view.pitch))
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
