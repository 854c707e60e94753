"""Hair and beard: a posed head in, what grows behind, over and on the face out."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, Mask, Window, noise, polygon, smoothstep
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light, Skin


def paint_back_hair(canvas: Canvas, head: Head, light: Light) -> None:
    """The hair that is seen around the head, painted before the face."""
    person = head.face.person
    if person.hair_style in ("bald", "receding"):
        return
    rng = np.random.default_rng(person.texture)
    outline = head.outline(grow=0.0, step=8)
    volume = person.hair_volume * (1.5 if person.hair_style == "curly" else 1.0)
    low = 2.2 if person.hair_style == "long" else 0.35
    middle = np.array([np.sin(head.view.yaw) * 0.05, -0.35])
    arms = outline - middle
    length = np.linalg.norm(arms, axis=1, keepdims=True)
    grown = outline + arms / np.maximum(length, 1e-3) * volume * smoothstep(0.5, -0.6, outline[:, 1])[:, None]
    if person.hair_style == "curly":
        grown += 0.05 * rng.standard_normal(grown.shape) * (outline[:, 1:] < 0.2)
    if person.hair_style == "long":
        wide = (
            np.sign(outline[:, :1]) * (1.08 + volume) * np.array([[1.0, 0.0]]) + np.array([[0.0, 1.0]]) * outline[:, 1:]
        )
        hang = smoothstep(-0.5, 0.3, outline[:, 1])[:, None]
        grown = grown * (1 - hang) + wide * hang
        grown = grown[outline[:, 1] < 1.2]
        half = len(grown) // 2
        ends = np.array([[-1.15 - volume, low], [1.15 + volume, low]])
        grown = np.concatenate([grown[:half], ends, grown[half:]])
    else:
        grown = grown[outline[:, 1] < low]
    pixels = head.to_pixels(grown)
    _lay(canvas, head, light, pixels, rng)
    if person.hair_style == "bun":
        angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        bun = np.stack([0.36 * np.cos(angle), 0.3 * np.sin(angle) - 1.98], 1)
        _lay(canvas, head, light, head.to_pixels(bun - np.array([0.35 * np.sin(head.view.yaw), 0.0])), rng)


def paint_front_hair(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """The hair that lies on the forehead and the temples."""
    person = head.face.person
    if person.hair_style == "bald":
        return
    rng = np.random.default_rng(person.texture + 1)
    x, y = skin.surface.x, skin.surface.y
    line = _hairline(person.hair_style, person.hairline, np.abs(x) if person.hair_style != "side" else x)
    ragged = 0.035 * noise(rng, x.shape, 12, 2.2)
    # All of a pixel on the skull's edge, lest a rim of skin shines through.
    cover = smoothstep(0.05, -0.05, y - line + ragged) * (skin.mask > 0)
    if person.hair_style == "receding":
        cover *= np.float32(0.75)
    canvas.blend(skin.window, cover, _locks(skin.window, head, light, rng))
    shadow = np.exp(-((np.clip(y - line, 0, None) / 0.1) ** 2)) * skin.mask * (1 - cover)
    canvas.shade(skin.window, shadow * np.float32(0.35), 0.55)


def paint_beard(canvas: Canvas, head: Head, skin: Skin, light: Light) -> None:
    """Stubble, moustache, goatee or full beard, painted before the mouth."""
    person = head.face.person
    if person.beard == "none":
        return
    rng = np.random.default_rng(person.texture + 2)
    x, y = np.abs(skin.surface.x), skin.surface.y
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


def _locks(window: Window, head: Head, light: Light, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    """Hair colour over a window: strands, a sheen on the lit side."""
    person = head.face.person
    height, width = window.bottom - window.top, window.right - window.left
    curly = person.hair_style == "curly"
    strands = noise(rng, (height, width), 4 if curly else 18, 2.4 if curly else 1.8)
    px, py = np.meshgrid(np.arange(window.left, window.right), np.arange(window.top, window.bottom))
    dx, dy = (px - head.view.centre[0]) / head.view.unit, (py - head.view.centre[1]) / head.view.unit
    towards = (dx * light.direction[0] + (dy + 0.9) * light.direction[1]) * 0.45
    sheen = np.exp(-(((dy + 1.25 + 0.25 * dx * dx) / 0.3) ** 2)) * 0.2
    bright = np.clip((0.72 + towards + sheen + 0.11 * strands) * (0.5 + 0.5 * light.ambient + 0.25), 0.15, 1.6)
    return (person.hair * bright[..., None] + 0.03 * bright[..., None]) * light.colour


def _lay(canvas: Canvas, head: Head, light: Light, pixels: Float[np.ndarray, "n 2"], rng: np.random.Generator) -> None:
    window = canvas.window(pixels)
    if not window.empty:
        mask: Mask = polygon(window, pixels, soft=0.02 * head.view.unit)
        canvas.blend(window, mask, 0.85 * _locks(window, head, light, rng))
