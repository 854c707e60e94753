"""One portrait: a person, action units and a scene in, the picture and the five true landmarks out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from fer_pipeline.synthesis.action_units import Activation
from fer_pipeline.synthesis.anatomy import pose_face
from fer_pipeline.synthesis.backdrops import paint_backdrop
from fer_pipeline.synthesis.camera import develop
from fer_pipeline.synthesis.canvas import Canvas
from fer_pipeline.synthesis.eyes import paint_brows, paint_eyes
from fer_pipeline.synthesis.hair import paint_back_hair, paint_beard, paint_front_hair
from fer_pipeline.synthesis.head import Head
from fer_pipeline.synthesis.mouth import paint_mouth, paint_nose
from fer_pipeline.synthesis.people import Person
from fer_pipeline.synthesis.skin import Skin, paint_skin
from fer_pipeline.synthesis.styles import Scene
from fer_pipeline.synthesis.wearing import paint_bust, paint_glasses, paint_occlusion

_METERED = 0.56  # brightness that a camera gives a face …
_METERING = 0.45  # … as far as it corrects


@dataclass(frozen=True, slots=True)
class Portrait:
    """A drawn picture and where its landmarks are: left eye, right eye, nose, mouth left, mouth right, in pixels."""

    image: UInt8[np.ndarray, "h w 3"]
    landmarks: Float[np.ndarray, "5 2"]


def draw_portrait(person: Person, aus: Activation, scene: Scene, *, size: int, seed: int) -> Portrait:
    """Draws a square portrait; `seed` rules the fine texture only."""
    rng = np.random.default_rng(seed)
    head = Head(pose_face(person, aus), scene.view)
    canvas = Canvas(size, size)
    paint_backdrop(canvas, scene.backdrop, scene.backdrop_colour, rng)
    paint_back_hair(canvas, head, scene.light)
    paint_bust(canvas, head, scene.light, scene.clothes)
    skin = paint_skin(canvas, head, scene.light, rng)
    paint_beard(canvas, head, skin, scene.light)
    paint_nose(canvas, head)
    paint_eyes(canvas, head, skin, scene.light, scene.gaze)
    paint_brows(canvas, head, rng)
    paint_mouth(canvas, head, skin, scene.light)
    paint_front_hair(canvas, head, skin, scene.light)
    paint_glasses(canvas, head)
    if scene.occlusion is not None:
        paint_occlusion(canvas, head, scene.light, scene.occlusion, rng)
    _expose(canvas, skin)
    image = develop(canvas.pixels, scene.exposure, rng)
    return Portrait(image=image, landmarks=head.project(head.face.landmarks()))


def _expose(canvas: Canvas, skin: Skin) -> None:
    """Exposes for the face, partly, as cameras do; else dark skin drowns in dark scenes."""
    face = canvas.pixels[skin.window.slices][skin.mask > 0.5]
    if len(face):
        canvas.pixels *= np.float32((_METERED / max(float(face.mean()), 0.05)) ** _METERING)
