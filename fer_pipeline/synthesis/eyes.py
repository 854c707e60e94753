"""Eyes and brows: a posed head in, painted eyes (lids, white, iris, pupil, glint, lashes) and brows out."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.anatomy import Eye
from fer_pipeline.synthesis.canvas import Canvas, disc, noise, polygon, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light, Skin

_WHITE = np.array([0.9, 0.88, 0.86])


def paint_eyes(canvas: Canvas, head: Head, skin: Skin, light: Light, gaze: Float[np.ndarray, " 2"]) -> None:
    """Both eyes; `gaze` shifts the irises in head units."""
    for side, eye in enumerate(head.face.eyes):
        _paint_eye(canvas, head, skin, light, eye, gaze, side)


def paint_brows(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Both brows, as soft tapered bands with a hairy edge."""
    person, unit = head.face.person, head.view.unit
    colour = 0.75 * person.hair + 0.06 if person.hair.mean() < 0.5 else 0.55 * person.hair
    colour = np.minimum(colour, 0.62 * person.skin)
    for curve in head.face.brows:
        taper = np.array([0.7, 1.0, 1.08, 1.05, 1.0, 0.9, 0.75, 0.5, 0.2]) * head.face.brow_thick
        up, down = curve - np.stack([0 * taper, 0.55 * taper], 1), curve + np.stack([0 * taper, 0.45 * taper], 1)
        band = head.project(np.concatenate([up, down[::-1]]))
        window = canvas.window(band, 3)
        if window.empty:
            continue
        mask = polygon(window, band, soft=0.016 * unit)
        hairs = 1 + 0.18 * noise(rng, mask.shape, 2.5, 1.2)
        canvas.blend(window, np.clip(mask * hairs * 0.92, 0, 1), colour)


def _paint_eye(
    canvas: Canvas, head: Head, skin: Skin, light: Light, eye: Eye, gaze: Float[np.ndarray, " 2"], side: int
) -> None:
    person, unit = head.face.person, head.view.unit
    upper, lower = head.project(eye.upper), head.project(eye.lower)
    opening = np.concatenate([upper, lower[::-1]])
    crease = eye.upper - np.array([0.0, 0.055]) - np.array([0.0, 0.2]) * np.maximum(0, 0.1 - eye.opening)
    lid_band = np.concatenate([head.project(crease), upper[::-1]])
    window = canvas.window(np.concatenate([opening, lid_band]), 4)
    if window.empty:
        return
    near = (window.top - skin.window.top, window.left - skin.window.left)
    rows = slice(near[0], near[0] + window.bottom - window.top)
    columns = slice(near[1], near[1] + window.right - window.left)
    lit = np.clip(skin.brightness[rows, columns], 0.25, 1.1)
    if lit.shape != (window.bottom - window.top, window.right - window.left):
        return  # the eye lies off the face's window, behind the turned head

    canvas.shade(window, polygon(window, lid_band, soft=0.02 * unit), 0.93)
    canvas.shade(window, stroke(window, head.project(crease[1:]), 0.028 * unit, soft=0.012 * unit), 0.58)

    inside = polygon(window, opening)
    shade = (0.45 + 0.55 * lit) * float(light.colour.mean())
    canvas.blend(window, inside, (_WHITE * light.colour)[None, None] * shade[..., None])
    centre = eye.centre + gaze
    look = head.project(centre[None])[0]
    squash = max(0.45, np.cos(head.view.yaw))
    radius = person.iris * unit
    for scale, colour in ((1.0, 0.45 * person.eyes), (0.84, person.eyes), (0.45, np.full(3, 0.03))):
        ring = polygon(window, disc(look, scale * radius * squash, scale * radius, turn=head.view.roll))
        canvas.blend(window, ring * inside, colour * min(1.0, 0.5 + 0.6 * float(lit.mean())))
    # The upper lid throws a shadow on the eyeball.
    canvas.shade(window, stroke(window, upper, 0.085 * unit, soft=0.02 * unit) * inside, 0.55)
    glint = look + radius * np.array([0.32 * np.sign(light.direction[0] + 1e-6), -0.36])
    canvas.blend(window, polygon(window, disc(glint, 0.3 * radius)) * inside * np.float32(0.9), 0.97)
    corner = head.project(eye.upper[:1] * np.array([0.97, 1.0]))[0]
    canvas.blend(
        window, polygon(window, disc(corner, 0.03 * unit)) * inside * np.float32(0.6), 0.75 * person.lips + 0.1
    )

    lash = np.array([0.3, 0.5, 0.75, 0.95, 1.05, 1.1, 1.1, 1.05, 1.0, 0.85, 0.6]) * (0.034 if person.male else 0.046)
    lid = np.concatenate([head.project(eye.upper - np.stack([0 * lash, lash], 1)), upper[::-1]])
    canvas.blend(
        window,
        polygon(window, lid) * np.float32(0.9),
        np.minimum(0.4 * person.hair, 0.12) * (0.6 + 0.4 * float(lit.mean())),
    )
    canvas.blend(window, stroke(window, lower[2:], 0.016 * unit, soft=0.3) * np.float32(0.55), 0.36 * person.skin)
