"""Shade the skin of a posed head under a light, with the creases that action units deepen.

Lambert shading with a wrapped terminator over numeric normals of the depth map, a soft highlight, darkening where light
hardly reaches (sockets, under the nose and the lip), and folds and wrinkles.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, Mask, Points, Window, noise, polygon, strokes
from fer_pipeline.synthesis.head import Curve, Face, Head

Point = tuple[float, float]
Crease = tuple[Curve, float, float]  # curve of the head frame, thickness in head units, strength

_T = np.linspace(0, 1, 9)[:, None]


@dataclass(frozen=True, slots=True)
class Light:
    """Where the light comes from (x right, y down, z to the viewer), how soft it is and its colour."""

    direction: Float[np.ndarray, " 3"]
    ambient: float  # 0 hard, 1 flat
    colour: Float[np.ndarray, " 3"]
    gloss: float


@dataclass(frozen=True, slots=True)
class Skin:
    """What later layers need: the window of the face, its mask, place on the head (x, y) and brightness."""

    window: Window
    mask: Mask
    x: Mask
    y: Mask
    brightness: Mask

    def brightness_at(self, points: Points) -> float:
        """Returns the mean brightness under points in pixels, at least 0.3 and at most 1.05."""
        rows = np.clip(points[:, 1].astype(int) - self.window.top, 0, self.brightness.shape[0] - 1)
        columns = np.clip(points[:, 0].astype(int) - self.window.left, 0, self.brightness.shape[1] - 1)
        return float(np.clip(self.brightness[rows, columns].mean(), 0.3, 1.05))


def paint_skin(canvas: Canvas, head: Head, light: Light, rng: np.random.Generator) -> Skin:
    """Paints the bare face (no eyes, mouth or hair) and returns the layers that others build on."""
    outline = head.to_pixels(head.outline())
    window = canvas.window(outline)
    x, y, height = head.surface(window)
    mask = polygon(window, outline)
    unit, person = head.view.unit, head.face.person
    down, across = np.gradient(height * unit)
    brightness, gloss = shade_normals(-np.asarray(across), -np.asarray(down), light)

    beside = np.abs(x)
    tip = head.face.nose_tip[1]
    hidden = 0.22 * _spot(beside - person.eye_x, y + 0.1, 0.2, 0.1) + 0.16 * _spot(beside - 0.19, y, 0.08, 0.14)
    hidden += 0.24 * _spot(x, y - tip - 0.17, 0.17, 0.06)
    hidden += 0.16 * _spot(x, y - float(head.face.mouth.outer_lower[8, 1]) - 0.07, 0.17, 0.05)
    side = -np.sign(light.direction[0]) * min(1.0, 2.2 * abs(float(light.direction[0]))) * (1 - light.ambient)
    hidden += 0.22 * abs(side) * _spot(x - 0.24 * np.sign(side), y - tip + 0.12, 0.13, 0.26)
    brightness = brightness * (1 - np.clip(hidden, 0, 0.8))

    texture = noise(rng, x.shape, 1.5, 1.5) * (0.006 + 0.011 * person.age) + noise(rng, x.shape, 9, 9) * 0.012
    red = 0.5 * _spot(beside - 0.52, y - 0.5, 0.26, 0.22) + 0.5 * _spot(x, y - tip, 0.17, 0.13)
    albedo = person.skin * (1 + texture[..., None]) * (1 - red[..., None] * np.array([0.0, 0.1, 0.09]))
    # Blood under the skin reddens the shadows.
    depth = np.stack([brightness**0.92, brightness, brightness**1.06], -1)
    colour = albedo * depth * light.colour + gloss[..., None] * light.gloss
    colour = colour * (1 - _crease_darkness(head, window)[..., None] * np.array([0.42, 0.52, 0.54]))
    canvas.blend(window, mask, np.clip(colour, 0, 1))
    return Skin(window=window, mask=mask, x=x, y=y, brightness=brightness)


def shade_normals(nx: Mask, ny: Mask, light: Light) -> tuple[Mask, Mask]:
    """Returns brightness and highlight of the normals (nx, ny, 1), which need not be of length one."""
    length = np.sqrt(nx * nx + ny * ny + 1.0)
    lx, ly, lz = light.direction.tolist()
    wrap = 0.35
    diffuse = np.clip(((nx * lx + ny * ly + lz) / length + wrap) / (1 + wrap), 0, 1)
    brightness = light.ambient * (0.78 + 0.22 / length) + (1 - light.ambient) * diffuse * 1.12
    half = np.array([lx, ly, lz + 1.0])
    half /= np.linalg.norm(half)
    gloss = np.clip((nx * half[0] + ny * half[1] + half[2]) / length, 0, 1) ** 22
    return brightness.astype(np.float32), gloss.astype(np.float32)


def _spot(dx: Mask, dy: Mask, width: float, height: float) -> Mask:
    return np.exp(-((dx / np.float32(width)) ** 2) - (dy / np.float32(height)) ** 2)


def _crease_darkness(head: Head, window: Window) -> Mask:
    """Folds and wrinkles as a darkness between 0 and 1."""
    # The darkest is drawn last, on top.
    visible = sorted((crease for crease in creases(head.face) if crease[2] > 0.03), key=lambda crease: crease[2])
    if not visible:
        return np.zeros(window.shape, np.float32)
    unit = head.view.unit
    curves = zip(head.project_curves(*(curve for curve, _, _ in visible)), visible, strict=True)
    lines = [(pixels, thick * unit, min(strength, 1.0)) for pixels, (_, thick, strength) in curves]
    return strokes(window, lines, blur=max(0.5, 0.022 * unit))


def creases(face: Face) -> list[Crease]:
    """Returns every fold and wrinkle of a face, also those too faint to be seen."""
    au, person = face.units, face.person
    raised = 0.5 * (au.mean(1) + au.mean(2))
    lift = 0.05 * raised
    chin = person.length - 0.3 + face.jaw
    lines = [_arc((-0.14, chin + 0.03), (0.0, chin - 0.05), (0.14, chin + 0.03), 0.05, 0.7 * au.mean(17))]
    for row, y in enumerate((-0.86, -0.72, -0.58)):
        heights = [y + 0.04 - lift, y - 0.02 - lift, y + 0.02 - lift, y - 0.02 - lift, y + 0.04 - lift]
        wave = np.column_stack([[-0.5, -0.2, 0.0, 0.2, 0.5], heights])
        inner = au.mean(1) * (1 - au.mean(2)) * (0.7 if row else 0.3)  # AU1 alone wrinkles the middle
        strength = 0.16 * person.age + 0.62 * max(raised**1.3, 0.8 * inner)
        lines.append((wave[1:4] if inner > raised else wave, 0.035, strength))
    for side, mirror in enumerate(([-1.0, 1.0], [1.0, 1.0])):
        lines += [(curve * mirror, thick, strength) for curve, thick, strength in _side_creases(face, side)]
    return lines


def _side_creases(face: Face, side: int) -> list[Crease]:
    """Folds beside nose, eye and mouth on the left (0) or right (1) of the picture, as if on the right."""
    au, age, nose = face.units, face.person.age, face.units.mean(9)
    cheek, tight, smile, lip, depress, dimple = (float(au[unit][side]) for unit in (6, 7, 12, 10, 15, 14))
    frown = au.mean(4) * 0.85 + 0.2 * nose + 0.14 * age
    lines = [_arc((0.07, -0.36), (0.055, -0.25), (0.075, -0.14), 0.04, frown)]
    for y in (0.06 + 0.085 * step for step in range(3)):
        lines.append(_arc((0.02, y - 0.03), (0.08, y), (0.13, y + 0.06), 0.035, 0.8 * nose))

    wing, wing_y = face.nose_wing
    x, y = np.abs(face.mouth.outer_upper[-side, 0]), face.mouth.outer_upper[-side, 1]
    start = wing + 0.02, wing_y - 0.06 - 0.04 * nose
    bend = x + 0.07 + 0.05 * smile, wing_y + 0.06 - 0.03 * smile
    end = x + 0.1, max(y + 0.03, face.person.mouth_y - 0.05 + 0.2 * face.jaw)
    fold = 0.14 + 0.3 * age + 0.62 * smile + 0.5 * lip + 0.45 * nose + 0.15 * depress
    lines.append(_arc(start, bend, end, 0.05, fold))
    lines.append(_arc((x, y), (x + 0.05, y + 0.08), (x + 0.03, y + 0.2), 0.045, 0.62 * depress + 0.12 * age))
    lines.append(_arc((x + 0.06, y - 0.08), (x + 0.09, y), (x + 0.06, y + 0.08), 0.06, 0.9 * dimple))

    outer_x, outer_y = np.abs(face.eyes[side].upper[-1, 0]), face.eyes[side].upper[-1, 1]
    for step in (-1, 0, 1):  # crow's feet
        start, end = (outer_x + 0.05, outer_y + 0.05 * step), (outer_x + 0.19, outer_y + 0.11 * step + 0.01)
        bend = (start[0] + end[0]) / 2, start[1] + 0.04 * step
        lines.append(_arc(start, bend, end, 0.03, 0.7 * cheek * (0.6 + 0.4 * age)))
    low = face.eyes[side].lower[2:-1]
    bag = np.column_stack([np.abs(low[:, 0]), low[:, 1] + 0.075 - 0.02 * cheek])
    return [*lines, (bag, 0.04, 0.08 + 0.3 * age + 0.45 * cheek + 0.25 * tight)]


def _arc(start: Point, bend: Point, end: Point, thick: float, strength: float) -> Crease:
    """A crease along a quadratic Bézier curve."""
    curve = (1 - _T) ** 2 * np.array(start) + 2 * _T * (1 - _T) * np.array(bend) + _T**2 * np.array(end)
    return curve, thick, strength
