"""Paint all of a portrait but the skin: backdrop, bust, eyes, brows, nose, mouth, hair, and what covers a face."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, Points, Window, ellipse, noise, polygon, smoothstep, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light, Skin

OCCLUSIONS = ("hand", "scarf", "cap", "microphone", "object")

_NECK = np.array([[-0.52, 0.8], [-0.56, 1.75], [-0.75, 2.15], [0.75, 2.15], [0.56, 1.75], [0.52, 0.8]])
_CLOTHES = np.column_stack(
    [[-3.2, -2.6, -1.5, -0.72, -0.3, 0.3, 0.72, 1.5, 2.6, 3.2], [4.2, 2.35, 2.0, 1.8, 2.15, 2.15, 1.8, 2.0, 2.35, 4.2]]
)
_EAR = np.array([[0.93, -0.1], [1.06, -0.17], [1.14, -0.05], [1.12, 0.2], [1.05, 0.42], [0.96, 0.48], [0.92, 0.3]])
_RIM_ANGLES = np.linspace(0, 2 * np.pi, 33)
# Half width, half height, exponent of the rim's superellipse, thickness of the frame.
_GLASSES = {1: (0.27, 0.25, 2.0, 0.03), 2: (0.31, 0.19, 4.0, 0.055), 3: (0.3, 0.23, 2.6, 0.04)}
_WHITE = np.array([0.9, 0.88, 0.86])
_TEETH = np.array([0.9, 0.87, 0.82])
_LASHES = np.array([0.3, 0.5, 0.75, 0.95, 1.05, 1.1, 1.1, 1.05, 1.0, 0.85, 0.6])  # lengths from the inner corner
_BROW_TAPER = np.array([0.7, 1.0, 1.08, 1.05, 1.0, 0.9, 0.75, 0.5, 0.2])
_BUN_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_BUN = np.column_stack([0.36 * np.cos(_BUN_ANGLES), 0.3 * np.sin(_BUN_ANGLES) - 1.98])


def paint_eyes(canvas: Canvas, head: Head, skin: Skin, light: Light, gaze: Float[np.ndarray, " 2"]) -> None:
    """Paints both eyes (lids, white, iris, pupil, glint, lashes); `gaze` shifts the irises in head units."""
    person, unit = head.face.person, head.view.unit
    for eye in head.face.eyes:
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
            continue  # the eye lies outside the picture, or off the face's window, behind the turned head

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
    down = np.column_stack([0 * _BROW_TAPER, _BROW_TAPER * person.brow_thick])
    for curve in head.face.brows:
        band = head.project(np.concatenate([curve - 0.55 * down, (curve + 0.45 * down)[::-1]]))
        window = canvas.window(band, 3)
        mask = polygon(window, band, blur=0.016 * unit)
        hairs = 1 + 0.18 * noise(rng, mask.shape, 2.5, 1.2)
        canvas.blend(window, np.clip(mask * hairs * 0.92, 0, 1), colour)


def paint_nose(canvas: Canvas, head: Head) -> None:
    """Paints nostrils, the wings' creases and the shadow under the tip."""
    skin, unit = head.face.person.skin, head.view.unit
    wing, y = head.face.nose_wing
    crease = np.array([[0.9 * wing, y - 0.14], [1.02 * wing, y - 0.06], [0.97 * wing, y + 0.02]])
    base = np.column_stack([np.array([-0.75, -0.2, 0.2, 0.75]) * wing, y + np.array([0.05, 0.075, 0.075, 0.05])])
    nostrils = np.array([[-0.46 * wing, y + 0.035], [0.46 * wing, y + 0.035]])
    nostrils, left, right, base = head.project_curves(nostrils, crease * np.array([-1.0, 1.0]), crease, base)
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
            outline = ellipse(centre, 0.2 * unit, 0.4 * mouth.gap * unit, angle=head.view.roll)
            tongue = polygon(window, outline, blur=blur)
            canvas.blend(window, tongue * inside * np.float32(0.8), np.array([0.55, 0.22, 0.22]) * tint)
        enamel, across = _TEETH * np.minimum(1.0, 0.3 + 0.75 * tint), np.linspace(-1, 1, len(mouth.inner_upper))
        upper = min(0.105, mouth.gap) * mouth.upper_teeth * (1 - 0.5 * across**2)
        lower = -min(0.07, 0.6 * mouth.gap) * mouth.lower_teeth * (1 - 0.6 * across**2)
        for visible, height, lip, gum, opacity, shade in (
            (mouth.upper_teeth, upper, mouth.inner_upper, -0.02, 0.95, 1.0),
            (mouth.lower_teeth, lower, mouth.inner_lower, 0.02, 0.85, 0.9),
        ):
            if visible > 0.1:
                edge = lip + np.column_stack([0 * height, height])
                teeth = polygon(window, head.project(np.concatenate([lip + np.array([0.0, gum]), edge[::-1]])))
                canvas.blend(window, teeth * inside * np.float32(opacity), shade * enamel)
    line = 0.5 * (inner_upper + inner_lower) if mouth.gap <= 0.05 else inner_upper
    canvas.blend(window, stroke(window, line, 0.026 * unit, blur=0.008 * unit) * np.float32(0.85), 0.26 * lips)
    for corner in (outer_upper[0], outer_upper[-1]):
        canvas.fill(ellipse(corner, 0.032 * unit), 0.32 * lips, opacity=0.55, blur=0.016 * unit)


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
    under_nose *= smoothstep(max(corner, lip) + 0.12, lip + 0.02, y - arch)
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
    mask = polygon(window, outline, blur=0.02 * head.view.unit)
    canvas.blend(window, mask, 0.85 * _hair_colour(window, head, light, rng))


def paint_backdrop(canvas: Canvas, kind: str, colour: Float[np.ndarray, " 3"], rng: np.random.Generator) -> None:
    """Fills the whole canvas with a backdrop : studio, blobs, stripes, or, for any other kind, room."""
    height, width = canvas.pixels.shape[:2]
    down = np.linspace(0, 1, height)[:, None].astype(np.float32)
    across = np.linspace(0, 1, width)[None].astype(np.float32)
    centre = rng.uniform(0.25, 0.75)
    if kind == "studio":
        glow = 1.08 - 0.5 * ((across - centre) ** 2 + (down - 0.4) ** 2)
        canvas.pixels[:] = colour * glow[..., None]
    elif kind == "blobs":
        cells = rng.uniform(8, 40)
        tint = rng.normal(0, 0.07, 3)
        canvas.pixels[:] = colour + rng.uniform(0.08, 0.18) * noise(rng, (height, width), cells, cells)[..., None]
        canvas.pixels += tint.astype(np.float32) * noise(rng, (height, width), cells, cells)[..., None]
    elif kind == "stripes":
        angle, pitch = rng.uniform(0, np.pi), rng.uniform(4, 14)
        wave = np.sin((across * np.cos(angle) + down * np.sin(angle)) * 2 * np.pi * pitch)
        second = np.clip(colour + rng.normal(0, 0.18, 3), 0, 1)
        share = (0.5 + 0.5 * np.clip(3 * wave, -1, 1))[..., None]
        canvas.pixels[:] = colour * share + second * (1 - share)
    else:
        canvas.pixels[:] = colour * (1 - 0.3 * down[..., None])
        for _ in range(int(rng.integers(3, 8))):
            left, top = rng.integers(-20, width - 8), rng.integers(-20, height - 8)
            size = rng.integers(10, width // 2, 2)
            patch = np.clip(colour + rng.normal(0, 0.2, 3), 0, 1)
            canvas.pixels[max(top, 0) : max(top + size[1], 0), max(left, 0) : max(left + size[0], 0)] = patch
    np.clip(canvas.pixels, 0, 1, out=canvas.pixels)


def paint_bust(canvas: Canvas, head: Head, light: Light, clothes: Float[np.ndarray, " 3"]) -> None:
    """Paints neck, shoulders and ears; comes before the face."""
    person, view = head.face.person, head.view
    lean = np.array([0.18 * np.sin(view.yaw), 0.0])
    side = float(light.direction[0])
    skin = person.skin * light.colour

    neck = head.to_pixels(_NECK * np.array([0.95 + 0.1 * person.male, 1.0]) + lean)
    window = canvas.window(neck)
    across, down = view.offsets(window)
    roundness = np.clip(1 - 0.9 * across**2 + 0.5 * side * across, 0.2, 1.1)
    shadow = 0.5 + 0.4 * np.clip((down - 1.45 - head.face.jaw) / 0.7, 0, 1)
    canvas.blend(window, polygon(window, neck, blur=0.6), skin * (roundness * shadow[:, None])[..., None])

    cloth = head.to_pixels(_CLOTHES + lean)
    window = canvas.window(cloth)
    across, _ = view.offsets(window)
    fold = np.clip(0.8 - 0.08 * across**2 + 0.15 * side * across, 0.3, 1.1)
    canvas.blend(window, polygon(window, cloth, blur=0.4), clothes * light.colour * fold[:, None])

    for sign in (-1.0, 1.0):
        ear = head.project(_EAR * np.array([sign * person.width, 1.0]), -0.12)
        lit = np.clip(0.72 + 0.3 * sign * side, 0.3, 1.0)
        canvas.fill(ear, skin * lit * np.array([1.0, 0.93, 0.93]), blur=0.4)
        middle = ear.mean(0)
        canvas.fill(middle + 0.5 * (ear - middle), skin * lit * 0.66, opacity=0.6, blur=0.5)


def paint_glasses(canvas: Canvas, head: Head) -> None:
    """Paints glasses of one of three shapes, with a faint reflection, on who wears them."""
    person, depth = head.face.person, 1.02
    if person.glasses == 0:
        return
    width, height, power, thick = _GLASSES[person.glasses]
    thick *= head.view.unit
    cos, sin = np.cos(_RIM_ANGLES), np.sin(_RIM_ANGLES)
    shape = np.column_stack([np.sign(cos) * np.abs(cos) ** (2 / power), np.sign(sin) * np.abs(sin) ** (2 / power)])
    for sign in (-1.0, 1.0):
        rim = shape * np.array([width, height]) + np.array([sign * (person.eye_x + 0.005), 0.03])
        pixels = head.project(rim, depth)
        if canvas.window(pixels, 3).empty:
            continue  # nor is its arm drawn
        canvas.fill(pixels, 0.9, opacity=0.07)
        canvas.line(pixels, thick, person.glasses_colour, opacity=0.92)
        arm = np.array([[sign * (person.eye_x + width), -0.02], [sign * 1.02, -0.03]])
        canvas.line(head.project(arm, np.array([depth, 0.05])), 0.8 * thick, person.glasses_colour, opacity=0.9)
    bridge = np.array([[-person.eye_x + width, 0.0], [0.0, -0.035], [person.eye_x - width, 0.0]])
    canvas.line(head.project(bridge, depth + 0.04), thick, person.glasses_colour, opacity=0.92)


def paint_occlusion(canvas: Canvas, head: Head, light: Light, kind: str, rng: np.random.Generator) -> None:
    """Paints one thing in front of the face, of a kind in `OCCLUSIONS`."""
    unit = head.view.unit
    colour = rng.uniform(0.08, 0.85, 3)
    lit = colour * light.colour
    side = rng.choice((-1.0, 1.0))
    if kind == "hand":
        flesh = head.face.person.skin * light.colour
        palm = np.array([side * 0.95, 1.5])
        arm = np.array([[0.75, 1.5], [1.2, 1.4], [1.6, 3.2], [0.9, 3.2]]) * [side, 1]
        canvas.fill(head.to_pixels(arm), 0.7 * flesh)
        canvas.fill(head.to_pixels(ellipse(palm, 0.33, 0.4)), 0.72 * flesh, blur=0.5)
        for finger in range(4):
            knuckle = palm + np.array([side * (0.2 - 0.14 * finger), -0.25 + 0.05 * finger])
            tip = np.array([side * (0.98 - 0.2 * finger), 0.62 + 0.13 * finger + rng.uniform(-0.05, 0.05)])
            path = head.to_pixels(np.stack([knuckle, tip]))
            canvas.line(path, 0.18 * unit, (0.66 + 0.05 * finger) * flesh, blur=0.4)
            canvas.fill(ellipse(path[1], 0.09 * unit), (0.66 + 0.05 * finger) * flesh, blur=0.3)
    elif kind == "scarf":
        top = rng.uniform(1.2, 1.45)
        heights = [top + 0.1, top + 0.12, top + 0.18, top + 0.12, top + 0.1, 2.4, 2.4]
        scarf = head.to_pixels(np.column_stack([[-1.3, -0.5, 0, 0.5, 1.3, 1.5, -1.5], heights]))
        window = canvas.window(scarf)
        folds = 0.85 + 0.15 * noise(rng, window.shape, 4, 14)
        canvas.blend(window, polygon(window, scarf, blur=0.5), lit * folds[..., None])
    elif kind == "cap":
        brim = rng.uniform(-0.62, -0.48)
        heights = [brim, -1.3, -1.85, -2.0, -1.85, -1.3, brim, brim - 0.1, brim - 0.14, brim - 0.1]
        cap = np.column_stack([[-1.15, -1.1, -0.7, 0, 0.7, 1.1, 1.15, 0.6, 0, -0.6], heights])
        canvas.fill(head.to_pixels(cap), lit, blur=0.5)
        heights = [brim, brim - 0.08, brim - 0.11, brim - 0.08, brim]
        edge = np.column_stack([[-1.15, -0.6, 0.0, 0.6, 1.15], heights])
        canvas.line(head.to_pixels(edge), 0.14 * unit, 0.6 * colour * light.colour, blur=0.4)
    elif kind == "microphone":
        tip = np.array([side * rng.uniform(0.1, 0.3), rng.uniform(1.35, 1.5)])
        path = head.to_pixels(np.stack([[side * 0.9, 2.8], tip]))
        canvas.line(path, 0.16 * unit, np.full(3, 0.12))
        canvas.fill(ellipse(path[1], 0.2 * unit), np.full(3, 0.2), blur=0.4)
    else:
        middle = np.array([side * rng.uniform(0.85, 1.2), rng.uniform(-0.6, 1.2)])
        outline = ellipse(middle, rng.uniform(0.25, 0.5), rng.uniform(0.4, 1.0), angle=rng.uniform(0, 3))
        canvas.fill(head.to_pixels(outline[:: int(rng.integers(1, 6))]), colour, blur=0.5)
