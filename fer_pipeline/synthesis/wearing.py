"""What a person wears and what gets in the way: neck, ears, clothes, glasses, and things in front of the face."""

import numpy as np
from jaxtyping import Float

from fer_pipeline.synthesis.canvas import Canvas, disc, noise, polygon, stroke
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.skin import Light

OCCLUSIONS = ("hand", "scarf", "cap", "microphone", "object")


def paint_bust(canvas: Canvas, head: Head, light: Light, clothes: Float[np.ndarray, " 3"]) -> None:
    """Neck, shoulders and ears, painted before the face."""
    person, view = head.face.person, head.view
    lean = 0.18 * np.sin(view.yaw)
    neck = np.array([[-0.52, 0.8], [-0.56, 1.75], [-0.75, 2.15], [0.75, 2.15], [0.56, 1.75], [0.52, 0.8]]) * np.array(
        [0.95 + 0.1 * person.male, 1.0]
    )
    neck[:, 0] += lean
    pixels = head.to_pixels(neck)
    window = canvas.window(pixels)
    side = float(light.direction[0])
    if not window.empty:
        mask = polygon(window, pixels, soft=0.6)
        across = (np.arange(window.left, window.right) - view.centre[0]) / view.unit
        down = (np.arange(window.top, window.bottom) - view.centre[1]) / view.unit
        roundness = np.clip(1 - 0.9 * across**2 + 0.5 * side * across, 0.2, 1.1)[None]
        shadow = 0.5 + 0.4 * np.clip((down - 1.45 - head.face.jaw) / 0.7, 0, 1)[:, None]
        canvas.blend(window, mask, (person.skin * light.colour) * (roundness * shadow)[..., None])
    cloth = np.array(
        [
            [-3.2, 4.2],
            [-2.6, 2.35],
            [-1.5, 2.0],
            [-0.72, 1.8],
            [-0.3, 2.15],
            [0.3, 2.15],
            [0.72, 1.8],
            [1.5, 2.0],
            [2.6, 2.35],
            [3.2, 4.2],
        ]
    )
    cloth[:, 0] += lean
    pixels = head.to_pixels(cloth)
    window = canvas.window(pixels)
    if not window.empty:
        mask = polygon(window, pixels, soft=0.4)
        across = (np.arange(window.left, window.right) - view.centre[0]) / view.unit
        fold = np.clip(0.8 - 0.08 * across**2 + 0.15 * side * across, 0.3, 1.1)
        canvas.blend(window, mask, (clothes * light.colour) * fold[None, :, None])
    for sign in (-1.0, 1.0):
        ear = np.array(
            [[0.93, -0.1], [1.06, -0.17], [1.14, -0.05], [1.12, 0.2], [1.05, 0.42], [0.96, 0.48], [0.92, 0.3]]
        ) * np.array([sign * person.width, 1.0])
        ear_pixels = head.project(ear, -0.12)
        lit = np.clip(0.72 + 0.3 * sign * side, 0.3, 1.0)
        canvas.fill(ear_pixels, person.skin * light.colour * lit * np.array([1.0, 0.93, 0.93]), soft=0.4)
        middle = ear_pixels.mean(0)
        canvas.fill(
            middle + 0.5 * (ear_pixels - middle), person.skin * light.colour * lit * 0.66, opacity=0.6, soft=0.5
        )


def paint_glasses(canvas: Canvas, head: Head) -> None:
    """Glasses of three shapes, with a faint reflection."""
    person, unit = head.face.person, head.view.unit
    if person.glasses == 0:
        return
    power = {1: 2.0, 2: 4.0, 3: 2.6}[person.glasses]
    width, height = {1: (0.27, 0.25), 2: (0.31, 0.19), 3: (0.3, 0.23)}[person.glasses]
    thick = (0.03, 0.055, 0.04)[person.glasses - 1] * unit
    angle = np.linspace(0, 2 * np.pi, 33)
    shape = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / power),
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / power),
        ],
        1,
    )
    depth = 1.02
    for sign in (-1.0, 1.0):
        rim = shape * np.array([width, height]) + np.array([sign * (person.eye_x + 0.005), 0.03])
        pixels = head.project(rim, depth)
        window = canvas.window(pixels, 3)
        if window.empty:
            continue
        canvas.blend(window, polygon(window, pixels) * np.float32(0.07), 0.9)
        canvas.blend(window, stroke(window, pixels, thick) * np.float32(0.92), person.glasses_colour)
        arm = head.project(
            np.array([[sign * (person.eye_x + width), -0.02], [sign * 1.02, -0.03]]), np.array([depth, 0.05])
        )
        canvas.line(arm, 0.8 * thick, person.glasses_colour, opacity=0.9)
    bridge = np.array([[-person.eye_x + width, 0.0], [0.0, -0.035], [person.eye_x - width, 0.0]])
    canvas.line(head.project(bridge, depth + 0.04), thick, person.glasses_colour, opacity=0.92)


def paint_occlusion(canvas: Canvas, head: Head, light: Light, kind: str, rng: np.random.Generator) -> None:
    """One thing in front of the face, of a kind in `OCCLUSIONS`."""
    person, unit = head.face.person, head.view.unit
    colour = rng.uniform(0.08, 0.85, 3)
    side = rng.choice((-1.0, 1.0))
    if kind == "hand":
        flesh = person.skin * light.colour
        palm = np.array([side * 0.95, 1.5])
        canvas.fill(
            head.to_pixels(np.array([[0.75, 1.5], [1.2, 1.4], [1.6, 3.2], [0.9, 3.2]]) * [side, 1]), 0.7 * flesh
        )
        canvas.fill(head.to_pixels(disc(palm, 0.33, 0.4)), 0.72 * flesh, soft=0.5)
        for finger in range(4):
            knuckle = palm + np.array([side * (0.2 - 0.14 * finger), -0.25 + 0.05 * finger])
            tip = np.array([side * (0.98 - 0.2 * finger), 0.62 + 0.13 * finger + rng.uniform(-0.05, 0.05)])
            path = head.to_pixels(np.stack([knuckle, tip]))
            canvas.line(path, 0.18 * unit, (0.66 + 0.05 * finger) * flesh, soft=0.4)
            canvas.fill(disc(path[1], 0.09 * unit), (0.66 + 0.05 * finger) * flesh, soft=0.3)
    elif kind == "scarf":
        level = rng.uniform(1.2, 1.45)
        shape = np.array(
            [
                [-1.3, level + 0.1],
                [-0.5, level + 0.12],
                [0, level + 0.18],
                [0.5, level + 0.12],
                [1.3, level + 0.1],
                [1.5, 2.4],
                [-1.5, 2.4],
            ]
        )
        pixels = head.to_pixels(shape)
        window = canvas.window(pixels)
        if not window.empty:
            mask = polygon(window, pixels, soft=0.5)
            folds = 0.85 + 0.15 * noise(rng, mask.shape, 4, 14)
            canvas.blend(window, mask, colour * light.colour * folds[..., None])
    elif kind == "cap":
        brim = rng.uniform(-0.62, -0.48)
        shape = np.array(
            [
                [-1.15, brim],
                [-1.1, -1.3],
                [-0.7, -1.85],
                [0, -2.0],
                [0.7, -1.85],
                [1.1, -1.3],
                [1.15, brim],
                [0.6, brim - 0.1],
                [0, brim - 0.14],
                [-0.6, brim - 0.1],
            ]
        )
        canvas.fill(head.to_pixels(shape), colour * light.colour, soft=0.5)
        edge = np.array([[-1.15, brim], [-0.6, brim - 0.08], [0.0, brim - 0.11], [0.6, brim - 0.08], [1.15, brim]])
        canvas.line(head.to_pixels(edge), 0.14 * unit, 0.6 * colour * light.colour, soft=0.4)
    elif kind == "microphone":
        tip = head.to_pixels(np.array([[side * rng.uniform(0.1, 0.3), rng.uniform(1.35, 1.5)]]))[0]
        end = head.to_pixels(np.array([[side * 0.9, 2.8]]))[0]
        canvas.line(np.stack([end, tip]), 0.16 * unit, np.full(3, 0.12))
        canvas.fill(disc(tip, 0.2 * unit), np.full(3, 0.2), soft=0.4)
    else:
        middle = np.array([side * rng.uniform(0.85, 1.2), rng.uniform(-0.6, 1.2)])
        corners = disc(middle, rng.uniform(0.25, 0.5), rng.uniform(0.4, 1.0), turn=rng.uniform(0, 3))[
            :: int(rng.integers(1, 6))
        ]
        canvas.fill(head.to_pixels(corners), colour, soft=0.5)
