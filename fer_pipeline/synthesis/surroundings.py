"""Paint what is not the face: backdrop, neck, ears, clothes, glasses, and things in front of the face."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, ellipse, noise, polygon, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light

BACKDROPS = ("studio", "blobs", "stripes", "room")
OCCLUSIONS = ("hand", "scarf", "cap", "microphone", "object")

_NECK = np.array([[-0.52, 0.8], [-0.56, 1.75], [-0.75, 2.15], [0.75, 2.15], [0.56, 1.75], [0.52, 0.8]])
_CLOTHES = np.column_stack(
    [[-3.2, -2.6, -1.5, -0.72, -0.3, 0.3, 0.72, 1.5, 2.6, 3.2], [4.2, 2.35, 2.0, 1.8, 2.15, 2.15, 1.8, 2.0, 2.35, 4.2]]
)
_EAR = np.array([[0.93, -0.1], [1.06, -0.17], [1.14, -0.05], [1.12, 0.2], [1.05, 0.42], [0.96, 0.48], [0.92, 0.3]])
_RIM_ANGLES = np.linspace(0, 2 * np.pi, 33)
# Half width, half height, exponent of the rim's superellipse, thickness of the frame.
_GLASSES = {1: (0.27, 0.25, 2.0, 0.03), 2: (0.31, 0.19, 4.0, 0.055), 3: (0.3, 0.23, 2.6, 0.04)}


def paint_backdrop(canvas: Canvas, kind: str, colour: Float[np.ndarray, " 3"], rng: np.random.Generator) -> None:
    """Fills the whole canvas with a backdrop of a kind in `BACKDROPS`."""
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
        window = canvas.window(pixels, 3)
        if window.empty:
            continue
        canvas.blend(window, polygon(window, pixels) * np.float32(0.07), 0.9)
        canvas.blend(window, stroke(window, pixels, thick) * np.float32(0.92), person.glasses_colour)
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
        if not window.empty:
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
