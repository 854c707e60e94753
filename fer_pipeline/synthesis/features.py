"""Paint eyes, brows, nose, mouth, hair and beard of a posed head."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.anatomy import Eye
from fer_pipeline.synthesis.canvas import Canvas, Mask, Points, Window, ellipse, noise, polygon, smoothstep, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light, Skin

_WHITE = np.array([0.9, 0.88, 0.86])
_TEETH = np.array([0.9, 0.87, 0.82])
_LASHES = np.array([0.3, 0.5, 0.75, 0.95, 1.05, 1.1, 1.1, 1.05, 1.0, 0.85, 0.6])  # lengths from the inner corner
_BROW_TAPER = np.array([0.7, 1.0, 1.08, 1.05, 1.0, 0.9, 0.75, 0.5, 0.2])
_BUN_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_BUN = np.column_stack([0.36 * np.cos(_BUN_ANGLES), 0.3 * np.sin(_BUN_ANGLES) - 1.98])


def paint_eyes(canvas: Canvas, head: Head, skin: Skin, light: Light, gaze: Float[np.ndarray, " 2"]) -> None:
    """Paints both eyes (lids, white, iris, pupil, glint, lashes); `gaze` shifts the irises in head units."""
    for eye in head.face.eyes:
        _paint_eye(canvas, head, skin, light, eye, gaze)


def _paint_eye(canvas: Canvas, head: Head, skin: Skin, light: Light, eye: Eye, gaze: Float[np.ndarray, " 2"]) -> None:
    person, unit = head.face.person, head.view.unit
    fold = eye.upper - np.array([0.0, 0.055]) - np.array([0.0, 0.2]) * np.maximum(0, 0.1 - eye.opening)
    lash = _LASHES * (0.034 if person.male else 0.046)
    upper, lower, fold, lashes, (iris, corner) = head.project_curves(
        eye.upper,
        eye.lower,
        fold,
        eye.upper - np.column_stack([0 * lash, lash]),
        np.stack([eye.centre + gaze, eye.upper[0] * np.array([0.97, 1.0])]),
    )
    opening = np.concatenate([upper, lower[::-1]])
    lid = np.concatenate([fold, upper[::-1]])
    window = canvas.window(np.concatenate([opening, lid]), 4)
    top, left = window.top - skin.window.top, window.left - skin.window.left
    height, width = window.shape
    lit = np.clip(skin.brightness[top : top + height, left : left + width], 0.25, 1.1)
    if window.empty or lit.shape != window.shape:
        return  # the eye lies outside the picture, or off the face's window, behind the turned head

    canvas.shade(window, polygon(window, lid, blur=0.02 * unit), 0.93)
    canvas.shade(window, stroke(window, fold[1:], 0.028 * unit, blur=0.012 * unit), 0.58)

    inside = polygon(window, opening)
    shade = (0.45 + 0.55 * lit) * float(light.colour.mean())
    canvas.blend(window, inside, (_WHITE * light.colour) * shade[..., None])
    squash = max(0.45, np.cos(head.view.yaw))
    radius = person.iris * unit
    bright = float(lit.mean())
    for scale, colour in ((1.0, 0.45 * person.eyes), (0.84, person.eyes), (0.45, np.full(3, 0.03))):
        ring = polygon(window, ellipse(iris, scale * radius * squash, scale * radius, angle=head.view.roll))
        canvas.blend(window, ring * inside, colour * min(1.0, 0.5 + 0.6 * bright))
    # The upper lid throws a shadow on the eyeball.
    canvas.shade(window, stroke(window, upper, 0.085 * unit, blur=0.02 * unit) * inside, 0.55)
    glint = iris + radius * np.array([0.32 * np.sign(light.direction[0] + 1e-6), -0.36])
    canvas.blend(window, polygon(window, ellipse(glint, 0.3 * radius)) * inside * np.float32(0.9), 0.97)
    tear_duct = polygon(window, ellipse(corner, 0.03 * unit)) * inside * np.float32(0.6)
    canvas.blend(window, tear_duct, 0.75 * person.lips + 0.1)

    lash_mask = polygon(window, np.concatenate([lashes, upper[::-1]])) * np.float32(0.9)
    canvas.blend(window, lash_mask, np.minimum(0.4 * person.hair, 0.12) * (0.6 + 0.4 * bright))
    canvas.blend(window, stroke(window, lower[2:], 0.016 * unit, blur=0.3) * np.float32(0.55), 0.36 * person.skin)


def paint_brows(canvas: Canvas, head: Head, rng: np.random.Generator) -> None:
    """Paints both brows, as soft tapered bands with a hairy edge."""
    person, unit = head.face.person, head.view.unit
    colour = 0.75 * person.hair + 0.06 if person.hair.mean() < 0.5 else 0.55 * person.hair
    colour = np.minimum(colour, 0.62 * person.skin)
    taper = _BROW_TAPER * person.brow_thick
    for curve in head.face.brows:
        up, down = (
            curve - np.column_stack([0 * taper, 0.55 * taper]),
            curve + np.column_stack([0 * taper, 0.45 * taper]),
        )
        band = head.project(np.concatenate([up, down[::-1]]))
        window = canvas.window(band, 3)
        if window.empty:
            continue
        mask = polygon(window, band, blur=0.016 * unit)
        hairs = 1 + 0.18 * noise(rng, mask.shape, 2.5, 1.2)
        canvas.blend(window, np.clip(mask * hairs * 0.92, 0, 1), colour)


def paint_nose(canvas: Canvas, head: Head) -> None:
    """Paints nostrils, the wings' creases and the shadow under the tip."""
    skin, unit = head.face.person.skin, head.view.unit
    wing, y = head.face.nose_wing
    crease = np.array([[0.9 * wing, y - 0.14], [1.02 * wing, y - 0.06], [0.97 * wing, y + 0.02]])
    base = np.array(
        [[-0.75 * wing, y + 0.05], [-0.2 * wing, y + 0.075], [0.2 * wing, y + 0.075], [0.75 * wing, y + 0.05]]
    )
    mirror = np.array([-1.0, 1.0])
    nostril = np.array([[0.46 * wing, y + 0.035]])
    nostrils, left, right, base = head.project_curves(
        np.concatenate([nostril * mirror, nostril]), crease * mirror, crease, base
    )
    for sign, centre, curve in ((-1.0, nostrils[0], left), (1.0, nostrils[1], right)):
        hole = ellipse(centre, 0.052 * unit, 0.027 * unit, angle=head.view.roll + sign * 0.25)
        canvas.fill(hole, 0.22 * skin, opacity=0.85, blur=0.01 * unit)
        canvas.line(curve, 0.035 * unit, 0.5 * skin, opacity=0.55, blur=0.014 * unit)
    canvas.line(base, 0.035 * unit, 0.45 * skin, opacity=0.45, blur=0.02 * unit)


def paint_mouth(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """Paints lips and what is between them."""
    mouth, lips, unit = head.face.mouth, head.face.person.lips, head.view.unit
    outer_upper, inner_upper, inner_lower, outer_lower = head.project_curves(
        mouth.outer_upper, mouth.inner_upper, mouth.inner_lower, mouth.outer_lower
    )
    window = canvas.window(np.concatenate([outer_upper, outer_lower]), 4)
    if window.empty:
        return
    lit = skin.brightness_at(outer_upper)
    tint = light.colour * (0.25 + 0.75 * lit)
    blur = 0.012 * unit
    for upper, lower, strength in ((outer_upper, inner_upper, 0.8), (inner_lower, outer_lower, 0.98)):
        canvas.blend(window, polygon(window, np.concatenate([upper, lower[::-1]]), blur=blur), strength * lips * tint)
    shine = stroke(window, 0.6 * inner_lower[4:13] + 0.4 * outer_lower[4:13], 0.03 * unit, blur=0.02 * unit)
    canvas.blend(window, shine * np.float32(0.22 + 0.8 * light.gloss), np.minimum(1, 1.35 * lips * tint + 0.12))

    if mouth.gap > 0.012:
        inside = polygon(window, np.concatenate([inner_upper, inner_lower[::-1]]))
        canvas.blend(window, inside, np.array([0.16, 0.05, 0.05]) * (0.5 + 0.5 * lit))
        if mouth.gap > 0.16:
            centre = head.project(np.array([[0.0, float(mouth.inner_lower[8, 1]) - 0.02]]))[0]
            tongue = polygon(
                window, ellipse(centre, 0.2 * unit, 0.4 * mouth.gap * unit, angle=head.view.roll), blur=blur
            )
            canvas.blend(window, tongue * inside * np.float32(0.8), np.array([0.55, 0.22, 0.22]) * tint)
        _paint_teeth(canvas, head, window, inside, _TEETH * np.minimum(1.0, 0.3 + 0.75 * tint))
    line = 0.5 * (inner_upper + inner_lower) if mouth.gap <= 0.05 else inner_upper
    canvas.blend(window, stroke(window, line, 0.026 * unit, blur=0.008 * unit) * np.float32(0.85), 0.26 * lips)
    for corner in (outer_upper[0], outer_upper[-1]):
        canvas.fill(ellipse(corner, 0.032 * unit), 0.32 * lips, opacity=0.55, blur=0.016 * unit)


def _paint_teeth(canvas: Canvas, head: Head, window: Window, inside: Mask, colour: Float[np.ndarray, " 3"]) -> None:
    mouth = head.face.mouth
    across = np.linspace(-1, 1, len(mouth.inner_upper))
    upper = min(0.105, mouth.gap) * mouth.upper_teeth * (1 - 0.5 * across**2)
    lower = -min(0.07, 0.6 * mouth.gap) * mouth.lower_teeth * (1 - 0.6 * across**2)
    for visible, height, lip, gum, opacity, shade in (
        (mouth.upper_teeth, upper, mouth.inner_upper, -0.02, 0.95, 1.0),
        (mouth.lower_teeth, lower, mouth.inner_lower, 0.02, 0.85, 0.9),
    ):
        if visible > 0.1:
            edge = lip + np.column_stack([0 * height, height])
            band = head.project(np.concatenate([lip + np.array([0.0, gum]), edge[::-1]]))
            canvas.blend(window, polygon(window, band) * inside * np.float32(opacity), shade * colour)


def paint_back_hair(canvas: Canvas, head: Head, light: Light) -> None:
    """Paints the hair that is seen around the head; comes before the face."""
    person = head.face.person
    style = person.hair_style
    if style in ("bald", "receding"):
        return
    rng = np.random.default_rng(person.texture)
    outline = head.outline()
    x, y = outline[:, :1], outline[:, 1:]
    volume = person.hair_volume * (1.5 if style == "curly" else 1.0)
    arms = outline - np.array([np.sin(head.view.yaw) * 0.05, -0.35])
    length = np.linalg.norm(arms, axis=1, keepdims=True)
    hair = outline + arms / np.maximum(length, 1e-3) * volume * smoothstep(0.5, -0.6, y)
    if style == "curly":
        hair += 0.05 * rng.standard_normal(hair.shape) * (y < 0.2)
    if style == "long":
        beside = np.column_stack([np.sign(x) * (1.08 + volume), y])
        hang = smoothstep(-0.5, 0.3, y)
        hair = (hair * (1 - hang) + beside * hang)[outline[:, 1] < 1.2]
        half = len(hair) // 2
        hair = np.concatenate([hair[:half], [[-1.15 - volume, 2.2], [1.15 + volume, 2.2]], hair[half:]])
    else:
        hair = hair[outline[:, 1] < 0.35]
    _fill_with_hair(canvas, head, light, head.to_pixels(hair), rng)
    if style == "bun":
        bun = _BUN - np.array([0.35 * np.sin(head.view.yaw), 0.0])
        _fill_with_hair(canvas, head, light, head.to_pixels(bun), rng)


def paint_front_hair(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """Paints the hair that lies on the forehead and the temples."""
    person = head.face.person
    if person.hair_style == "bald":
        return
    rng = np.random.default_rng(person.texture + 1)
    x, y = skin.x, skin.y
    line = _hairline(person.hair_style, person.hairline, np.abs(x) if person.hair_style != "side" else x)
    ragged = 0.035 * noise(rng, x.shape, 12, 2.2)
    # All of a pixel on the skull's edge, lest a rim of skin shines through.
    cover = smoothstep(0.05, -0.05, y - line + ragged) * (skin.mask > 0)
    if person.hair_style == "receding":
        cover *= np.float32(0.75)
    canvas.blend(skin.window, cover, _hair_colour(skin.window, head, light, rng))
    shadow = np.exp(-((np.clip(y - line, 0, None) / 0.1) ** 2)) * skin.mask * (1 - cover)
    canvas.shade(skin.window, shadow * np.float32(0.35), 0.55)


def paint_beard(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """Paints stubble, moustache, goatee or full beard; comes before the mouth."""
    person = head.face.person
    if person.beard == "none":
        return
    rng = np.random.default_rng(person.texture + 2)
    x, y = np.abs(skin.x), skin.y
    mouth, jaw = head.face.mouth, head.face.jaw
    lip = float(mouth.outer_upper[8, 1])
    corner = float(max(mouth.outer_upper[0, 1], mouth.outer_upper[-1, 1]))
    reach = person.mouth_width + 0.1
    arch = 0.1 * (x / reach) ** 2  # a moustache droops to the sides
    top = head.face.nose_wing[1] + 0.07 + arch
    under_nose = smoothstep(reach + 0.05, reach - 0.1, x) * smoothstep(-0.03, 0.06, y - top)
    under_nose = under_nose * smoothstep(max(corner, lip) + 0.12, lip + 0.02, y - arch)
    below = float(mouth.outer_lower[8, 1])
    chin = smoothstep(0.44, 0.2, x) * smoothstep(below - 0.02, below + 0.16, y)
    cheek_line = 0.62 + 0.45 * jaw + 0.5 * smoothstep(0.85, 0.3, x)
    jawline = smoothstep(-0.1, 0.2, y - cheek_line)
    jawline = jawline * smoothstep(0.2, 0.5, x + 0.6 * np.clip(y - 1.1, 0, None))
    whole = np.maximum(np.maximum(jawline, chin), under_nose)
    region = {
        "stubble": 0.36 * whole,
        "moustache": 0.85 * under_nose,
        "goatee": 0.8 * np.maximum(chin, under_nose),
        "full": 0.84 * whole,
    }[person.beard]
    grain = noise(rng, x.shape, 1.6, 1.1)
    lit = np.clip(skin.brightness, 0.2, 1.1)[..., None]
    colour = (0.85 * person.hair + 0.05) * (1 + 0.12 * grain[..., None]) * lit * light.colour
    canvas.blend(skin.window, np.clip(region * (1 + 0.1 * grain), 0, 0.95).astype(np.float32) * skin.mask, colour)


def _hairline(style: str, top: float, x: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Height of the edge of the hair over the width of the head."""
    across = np.abs(x)
    temple = 0.75 * smoothstep(0.68, 0.99, across)
    if style == "fringe":
        return top + 0.42 - 0.1 * across + 0.55 * smoothstep(0.7, 0.97, across)
    if style == "side":
        return top + 0.3 * smoothstep(-0.55, 0.75, x) + 0.06 * np.exp(-(((x + 0.45) / 0.12) ** 2)) + temple
    if style == "receding":
        return top - 0.42 + 1.15 * smoothstep(0.62, 0.95, across)
    if style == "long":
        return top + 0.05 + 0.35 * across**2 + 1.9 * smoothstep(0.76, 0.99, across)
    return top + 0.1 * across**2 + temple


def _hair_colour(window: Window, head: Head, light: Light, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Hair colour over a window: strands, a sheen on the lit side."""
    hair = head.face.person.hair
    strands = noise(rng, window.shape, *((4, 2.4) if head.face.person.hair_style == "curly" else (18, 1.8)))
    across, down = head.view.offsets(window)
    dx, dy = across[None], down[:, None]
    side = (dx * light.direction[0] + (dy + 0.9) * light.direction[1]) * 0.45
    sheen = np.exp(-(((dy + 1.25 + 0.25 * dx * dx) / 0.3) ** 2)) * 0.2
    bright = np.clip((0.72 + side + sheen + 0.11 * strands) * (0.5 + 0.5 * light.ambient + 0.25), 0.15, 1.6)
    return (hair * bright[..., None] + 0.03 * bright[..., None]) * light.colour


def _fill_with_hair(canvas: Canvas, head: Head, light: Light, outline: Points, rng: np.random.Generator) -> None:
    window = canvas.window(outline)
    if not window.empty:
        mask = polygon(window, outline, blur=0.02 * head.view.unit)
        canvas.blend(window, mask, 0.85 * _hair_colour(window, head, light, rng))
