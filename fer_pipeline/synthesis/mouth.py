"""Mouth and nostrils: a posed head in, painted lips, teeth, tongue and nose details out."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, disc, polygon, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light, Skin

_TEETH = np.array([0.9, 0.87, 0.82])


def paint_nose(canvas: Canvas, head: Head) -> None:
    """Nostrils, the wings' creases and the shadow under the tip."""
    person, unit = head.face.person, head.view.unit
    wing, wing_y = head.face.nose_wing
    dark = 0.22 * person.skin
    for sign in (-1.0, 1.0):
        hole = np.array([[sign * 0.46 * wing, wing_y + 0.035]])
        ring = disc(head.project(hole)[0], 0.052 * unit, 0.027 * unit, turn=head.view.roll + sign * 0.25)
        canvas.fill(ring, dark, opacity=0.85, soft=0.01 * unit)
        crease = np.array(
            [
                [sign * wing * 0.9, wing_y - 0.14],
                [sign * wing * 1.02, wing_y - 0.06],
                [sign * wing * 0.97, wing_y + 0.02],
            ]
        )
        canvas.line(head.project(crease), 0.035 * unit, 0.5 * person.skin, opacity=0.55, soft=0.014 * unit)
    base = np.array(
        [
            [-0.75 * wing, wing_y + 0.05],
            [-0.2 * wing, wing_y + 0.075],
            [0.2 * wing, wing_y + 0.075],
            [0.75 * wing, wing_y + 0.05],
        ]
    )
    canvas.line(head.project(base), 0.035 * unit, 0.45 * person.skin, opacity=0.45, soft=0.02 * unit)


def paint_mouth(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """Lips and what is between them."""
    mouth, person, unit = head.face.mouth, head.face.person, head.view.unit
    outer_upper, inner_upper, inner_lower, outer_lower = (
        head.project(curve) for curve in (mouth.outer_upper, mouth.inner_upper, mouth.inner_lower, mouth.outer_lower)
    )
    window = canvas.window(np.concatenate([outer_upper, outer_lower]), 4)
    if window.empty:
        return
    lit = _brightness(skin, outer_upper)
    tint = light.colour * (0.25 + 0.75 * lit)
    upper_lip = np.concatenate([outer_upper, inner_upper[::-1]])
    lower_lip = np.concatenate([inner_lower, outer_lower[::-1]])
    soft = 0.012 * unit
    canvas.blend(window, polygon(window, upper_lip, soft=soft), 0.8 * person.lips * tint)
    canvas.blend(window, polygon(window, lower_lip, soft=soft), 0.98 * person.lips * tint)
    shine = 0.6 * inner_lower[4:13] + 0.4 * outer_lower[4:13]
    canvas.blend(
        window,
        stroke(window, shine, 0.03 * unit, soft=0.02 * unit) * np.float32(0.22 + 0.8 * light.gloss),
        np.minimum(1, 1.35 * person.lips * tint + 0.12),
    )

    if mouth.gap > 0.012:
        inside = polygon(window, np.concatenate([inner_upper, inner_lower[::-1]]))
        canvas.blend(window, inside, np.array([0.16, 0.05, 0.05]) * (0.5 + 0.5 * lit))
        if mouth.gap > 0.16:
            low = head.project(np.array([[0.0, float(mouth.inner_lower[8, 1]) - 0.02]]))[0]
            canvas.blend(
                window,
                polygon(window, disc(low, 0.2 * unit, 0.4 * mouth.gap * unit, turn=head.view.roll), soft=soft)
                * inside
                * np.float32(0.8),
                np.array([0.55, 0.22, 0.22]) * tint,
            )
        _paint_teeth(canvas, head, window, inside, tint)
    line = 0.5 * (inner_upper + inner_lower) if mouth.gap <= 0.05 else inner_upper
    canvas.blend(window, stroke(window, line, 0.026 * unit, soft=0.008 * unit) * np.float32(0.85), 0.26 * person.lips)
    for corner in (outer_upper[0], outer_upper[-1]):
        canvas.fill(disc(corner, 0.032 * unit), 0.32 * person.lips, opacity=0.55, soft=0.016 * unit)


def _paint_teeth(
    canvas: Canvas, head: Head, window, inside: Float[np.ndarray, "h w"], tint: Float[np.ndarray, " 3"]
) -> None:
    mouth = head.face.mouth
    bright = _TEETH * np.minimum(1.0, 0.3 + 0.75 * tint)
    across = np.linspace(-1, 1, 17)
    height = min(0.105, mouth.gap) * mouth.upper_teeth * (1 - 0.5 * across**2)
    if mouth.upper_teeth > 0.1:
        edge = mouth.inner_upper + np.stack([0 * height, height], 1)
        band = head.project(np.concatenate([mouth.inner_upper - np.array([0.0, 0.02]), edge[::-1]]))
        canvas.blend(window, polygon(window, band) * inside * np.float32(0.95), bright)
    if mouth.lower_teeth > 0.1:
        height = min(0.07, 0.6 * mouth.gap) * mouth.lower_teeth * (1 - 0.6 * across**2)
        edge = mouth.inner_lower - np.stack([0 * height, height], 1)
        band = head.project(np.concatenate([mouth.inner_lower + np.array([0.0, 0.02]), edge[::-1]]))
        canvas.blend(window, polygon(window, band) * inside * np.float32(0.85), 0.9 * bright)


def _brightness(skin: Skin, points: Float[np.ndarray, "n 2"]) -> float:
    rows = np.clip(points[:, 1].astype(int) - skin.window.top, 0, skin.brightness.shape[0] - 1)
    columns = np.clip(points[:, 0].astype(int) - skin.window.left, 0, skin.brightness.shape[1] - 1)
    return float(np.clip(skin.brightness[rows, columns].mean(), 0.3, 1.05))
