"""Draw one portrait: paint a person's face, its surroundings and hair, then take the picture with a simulated camera.

Order of the camera's effects: low resolution and blur, contrast and gamma, colour cast or grey, vignette, press screen,
grain, JPEG.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from fer_pipeline.synthesis import painting
from fer_pipeline.synthesis.canvas import Canvas, smoothstep
from fer_pipeline.synthesis.expressions import Activation
from fer_pipeline.synthesis.head import Head, pose_face
from fer_pipeline.synthesis.people import Person
from fer_pipeline.synthesis.skin import paint_skin
from fer_pipeline.synthesis.styles import Scene

_FACE_BRIGHTNESS = 0.56  # what a camera's automatic exposure aims at …
_CORRECTION = 0.45  # … and how far it gets (exponent; 1 would be all the way)


@dataclass(frozen=True, slots=True)
class Portrait:
    """A drawn picture and where its landmarks are: left eye, right eye, nose, mouth left, mouth right, in pixels."""

    image: UInt8[np.ndarray, "h w 3"]
    landmarks: Float[np.ndarray, "5 2"]


def draw_portrait(person: Person, aus: Activation, scene: Scene, *, size: int, seed: int) -> Portrait:
    """Draws a square portrait; `seed` decides the fine texture only."""
    rng = np.random.default_rng(seed)
    head = Head(pose_face(person, aus), scene.view)
    canvas = Canvas(size, size)
    painting.paint_backdrop(canvas, scene.backdrop, scene.backdrop_colour, rng)
    painting.paint_back_hair(canvas, head, scene.light)
    painting.paint_bust(canvas, head, scene.light, scene.clothes)
    skin = paint_skin(canvas, head, scene.light, rng)
    painting.paint_beard(canvas, head, skin, scene.light)
    painting.paint_nose(canvas, head)
    painting.paint_eyes(canvas, head, skin, scene.light, scene.gaze)
    painting.paint_brows(canvas, head, rng)
    painting.paint_mouth(canvas, head, skin, scene.light)
    painting.paint_front_hair(canvas, head, skin, scene.light)
    painting.paint_glasses(canvas, head)
    if scene.occlusion is not None:
        painting.paint_occlusion(canvas, head, scene.light, scene.occlusion, rng)
    # Exposes for the face, partly, as cameras do; else dark skin drowns in dark scenes.
    if len(face := canvas.pixels[skin.window.slices][skin.mask > 0.5]):
        canvas.pixels *= np.float32((_FACE_BRIGHTNESS / max(float(face.mean()), 0.05)) ** _CORRECTION)
    image = develop(canvas.pixels, scene, rng)
    return Portrait(image=image, landmarks=head.project(head.face.landmarks()))


def develop(pixels: Float[np.ndarray, "h w 3"], scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture after optics, film and print."""
    height, width = pixels.shape[:2]
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if scene.shrink > 1.05:
        small = (max(8, round(width / scene.shrink)), max(8, round(height / scene.shrink)))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    if scene.blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(scene.blur))
    picture = np.asarray(image, np.float32) * np.float32(1 / 255)
    picture = (picture ** np.float32(scene.gamma) - 0.5) * np.float32(scene.contrast)
    picture += np.float32(0.5 + scene.brightness)
    picture *= scene.cast.astype(np.float32)
    if scene.grey > 0:
        luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        picture += np.float32(scene.grey) * (luma[..., None] - picture)
    corners, dots = _masks(height, width)
    if scene.vignette > 0:
        picture *= 1 - np.float32(scene.vignette) * corners
    if scene.screen > 0:
        picture += np.float32(0.16 * scene.screen) * dots
    if scene.grain > 0:
        grain = rng.standard_normal((height, width), np.float32)[..., None]
        if scene.grey < 0.9:
            grain = 0.75 * grain + 0.4 * rng.standard_normal((height, width, 3), np.float32)
        picture += np.float32(scene.grain) * grain
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """Returns the picture as JPEG bytes."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@cache
def _masks(height: int, width: int) -> tuple[Float[np.ndarray, "h w 1"], Float[np.ndarray, "h w 1"]]:
    """How far a pixel lies in the dark corners, and the dots of a halftone screen."""
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    dots = np.sin((across + down) * (height * 0.55)) * np.sin((across - down) * (height * 0.55))
    return smoothstep(0.5, 1.5, np.hypot(down, across))[..., None], dots[..., None].astype(np.float32)
