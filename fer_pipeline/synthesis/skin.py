"""The skin: a posed head and a light in, the shaded face with its creases out.

Lambert shading with a wrapped terminator over numeric normals of the depth map, a soft highlight, darkening where light
hardly reaches (sockets, under the nose and the lip), and creases that the action units deepen.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.anatomy import Curve, Face
from fer_pipeline.synthesis.canvas import Canvas, Mask, Window, noise, polygon, strokes
from fer_pipeline.synthesis.head import Head, Surface


@dataclass(frozen=True, slots=True)
class Light:
    """Where the light comes from (x right, y down, z to the viewer), how soft it is and its colour."""

    direction: Float[np.ndarray, " 3"]
    ambient: float  # 0 hard, 1 flat
    colour: Float[np.ndarray, " 3"]
    gloss: float


@dataclass(frozen=True, slots=True)
class Skin:
    """What later layers need: the window of the face, its mask, surface and brightness."""

    window: Window
    mask: Mask
    surface: Surface
    brightness: Mask


def paint_skin(canvas: Canvas, head: Head, light: Light, rng: np.random.Generator) -> Skin:
    """Paints the bare face (no eyes, mouth or hair) and returns the layers that others build on."""
    outline = head.to_pixels(head.outline())
    window = canvas.window(outline)
    surface = head.surface(window.left, window.top, window.right, window.bottom)
    mask = polygon(window, outline)
    unit, person = head.view.unit, head.face.person
    down, across = np.gradient(surface.height * unit)
    brightness, gloss = shading(-np.asarray(across), -np.asarray(down), light)

    x, y = surface.x, surface.y
    tip = head.face.nose_tip[1]
    hidden = 0.22 * _spot(np.abs(x) - person.eye_x, y + 0.1, 0.2, 0.1) + 0.16 * _spot(
        np.abs(x) - 0.19, y - 0.0, 0.08, 0.14
    )
    hidden += 0.24 * _spot(x, y - tip - 0.17, 0.17, 0.06)
    hidden += 0.16 * _spot(x, y - float(head.face.mouth.outer_lower[8, 1]) - 0.07, 0.17, 0.05)
    side = -np.sign(light.direction[0]) * min(1.0, 2.2 * abs(float(light.direction[0]))) * (1 - light.ambient)
    hidden += 0.22 * abs(side) * _spot(x - 0.24 * np.sign(side), y - tip + 0.12, 0.13, 0.26)
    brightness = brightness * (1 - np.clip(hidden, 0, 0.8))

    texture = noise(rng, x.shape, 1.5, 1.5) * (0.006 + 0.011 * person.age) + noise(rng, x.shape, 9, 9) * 0.012
    red = 0.5 * _spot(np.abs(x) - 0.52, y - 0.5, 0.26, 0.22) + 0.5 * _spot(x, y - tip, 0.17, 0.13)
    albedo = person.skin * (1 + texture[..., None]) * (1 - red[..., None] * np.array([0.0, 0.1, 0.09]))
    # Blood under the skin reddens the shadows.
    depth = np.stack([brightness**0.92, brightness, brightness**1.06], -1)
    colour = albedo * depth * light.colour + gloss[..., None] * light.gloss
    colour = colour * (1 - creases(head, window)[..., None] * np.array([0.42, 0.52, 0.54]))
    canvas.blend(window, mask, np.clip(colour, 0, 1))
    return Skin(window=window, mask=mask, surface=surface, brightness=brightness)


def shading(nx: Mask, ny: Mask, light: Light, nz: float = 1.0) -> tuple[Mask, Mask]:
    """Brightness and highlight of normals (nx, ny, nz), not necessarily of length one."""
    length = np.sqrt(nx * nx + ny * ny + nz * nz)
    lx, ly, lz = (float(value) for value in light.direction)
    facing = (nx * lx + ny * ly + nz * lz) / length
    wrap = 0.35
    diffuse = np.clip((facing + wrap) / (1 + wrap), 0, 1)
    brightness = light.ambient * (0.78 + 0.22 * nz / length) + (1 - light.ambient) * diffuse * 1.12
    half = np.array([lx, ly, lz + 1.0])
    half /= np.linalg.norm(half)
    gloss = np.clip((nx * half[0] + ny * half[1] + nz * half[2]) / length, 0, 1) ** 22
    return brightness.astype(np.float32), gloss.astype(np.float32)


def creases(head: Head, window: Window) -> Mask:
    """Folds and wrinkles as a darkness between 0 and 1."""
    lines = sorted(
        (line for line in _lines(head.face) if line[2] > 0.03), key=lambda line: line[2]
    )  # the darkest on top
    if not lines:
        return np.zeros((window.bottom - window.top, window.right - window.left), np.float32)
    pixels = head.project(np.concatenate([points for points, _, _ in lines]))
    ends = np.cumsum([len(points) for points, _, _ in lines])[:-1]
    unit = head.view.unit
    drawn = [
        (points, thick * unit, min(strength, 1.0))
        for points, (_, thick, strength) in zip(np.split(pixels, ends), lines, strict=True)
    ]
    return strokes(window, drawn, soft=max(0.5, 0.022 * unit))


def _spot(dx: Mask, dy: Mask, width: float, height: float) -> Mask:
    return np.exp(-((dx / np.float32(width)) ** 2) - (dy / np.float32(height)) ** 2)


def _arc(start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float]) -> Curve:
    t = np.linspace(0, 1, 9)[:, None]
    return (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)


def _lines(face: Face) -> list[tuple[Curve, float, float]]:
    """Curve, thickness and strength of every crease."""
    au, person = face.units, face.person
    age = person.age
    lines: list[tuple[Curve, float, float]] = []
    wing, wing_y = face.nose_wing
    raised = 0.5 * (au.mean(1) + au.mean(2))
    for row, y in enumerate((-0.86, -0.72, -0.58)):
        lift = 0.05 * raised
        wave = [
            (-0.5, y + 0.04 - lift),
            (-0.2, y - 0.02 - lift),
            (0.0, y + 0.02 - lift),
            (0.2, y - 0.02 - lift),
            (0.5, y + 0.04 - lift),
        ]
        inner = au.mean(1) * (1 - au.mean(2)) * (0.7 if row else 0.3)  # AU1 alone wrinkles the middle
        lines.append(
            (
                np.array(wave[1:4]) if inner > raised else np.array(wave),
                0.035,
                0.16 * age + 0.62 * max(raised**1.3, 0.8 * inner),
            )
        )
    for sign in (-1.0, 1.0):
        frown = au.mean(4) * 0.85 + 0.2 * au.mean(9) + 0.14 * age
        lines.append((_arc((sign * 0.07, -0.36), (sign * 0.055, -0.25), (sign * 0.075, -0.14)), 0.04, frown))
        nose = au.mean(9)
        for step in range(3):
            y = 0.06 + 0.085 * step
            lines.append((_arc((sign * 0.02, y - 0.03), (sign * 0.08, y), (sign * 0.13, y + 0.06)), 0.035, 0.8 * nose))
        side = 0 if sign < 0 else 1
        cheek, smile, lip, depress, dimple = (float(au[unit][side]) for unit in (6, 12, 10, 15, 14))
        corner_x = abs(float(face.mouth.outer_upper[-side, 0]))
        corner_y = float(face.mouth.outer_upper[-side, 1])
        fold = 0.14 + 0.3 * age + 0.62 * smile + 0.5 * lip + 0.45 * nose + 0.15 * depress
        start = (sign * (wing + 0.02), wing_y - 0.06 - 0.04 * nose)
        end_y = max(corner_y + 0.03, person.mouth_y - 0.05 + 0.2 * face.jaw)
        bend = (sign * (corner_x + 0.07 + 0.05 * smile), wing_y + 0.06 - 0.03 * smile)
        lines.append((_arc(start, bend, (sign * (corner_x + 0.1), end_y)), 0.05, fold))
        outer = face.eyes[side].upper[-1]
        for step in (-1, 0, 1):
            begin = (float(outer[0]) + sign * 0.05, float(outer[1]) + 0.05 * step)
            stop = (float(outer[0]) + sign * 0.19, float(outer[1]) + 0.11 * step + 0.01)
            lines.append(
                (
                    _arc(begin, ((begin[0] + stop[0]) / 2, begin[1] + 0.04 * step), stop),
                    0.03,
                    0.7 * cheek * (0.6 + 0.4 * age),
                )
            )
        low = face.eyes[side].lower
        bag = np.stack([low[2:-1, 0], low[2:-1, 1] + 0.075 - 0.02 * cheek], 1)
        lines.append((bag, 0.04, 0.08 + 0.3 * age + 0.45 * cheek + 0.25 * float(au[7][side])))
        lines.append(
            (
                _arc(
                    (sign * corner_x, corner_y),
                    (sign * (corner_x + 0.05), corner_y + 0.08),
                    (sign * (corner_x + 0.03), corner_y + 0.2),
                ),
                0.045,
                0.62 * depress + 0.12 * age,
            )
        )
        lines.append(
            (
                _arc(
                    (sign * (corner_x + 0.06), corner_y - 0.08),
                    (sign * (corner_x + 0.09), corner_y),
                    (sign * (corner_x + 0.06), corner_y + 0.08),
                ),
                0.06,
                0.9 * dimple,
            )
        )
    chin = person.length - 0.3 + face.jaw
    lines.append((_arc((-0.14, chin + 0.03), (0.0, chin - 0.05), (0.14, chin + 0.03)), 0.05, 0.7 * au.mean(17)))
    return lines
