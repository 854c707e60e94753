"""Draw a scene of a style and one portrait in it: paint a person, then take the picture with a simulated camera.

A style says how the pictures of a source look: `anchor` is a clean studio, `wild` is everything, `film` (dark, grainy,
flat) and `press` (grey, hard, screened) are the two shifted domains. A pair is the range of a uniform draw.
Order of the camera's effects: low resolution and blur, contrast and gamma, colour cast or grey, vignette, press screen,
grain, JPEG.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from fer_pipeline.core.documents import read_yaml
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings, validate
from fer_pipeline.synthesis import painting
from fer_pipeline.synthesis.canvas import Canvas, smoothstep
from fer_pipeline.synthesis.head import Head, View, pose_face
from fer_pipeline.synthesis.people import Activation, Person, Share
from fer_pipeline.synthesis.skin import Light, paint_skin

Range = tuple[float, float]
Overrides = Mapping[str, Mapping[str, Any]]  # by style: changed fields of a built-in style, or a new one
_FACE_BRIGHTNESS = 0.56  # what a camera's automatic exposure aims at …
_CORRECTION = 0.45  # … and how far it gets (exponent; 1 would be all the way)


class Style(Settings):
    """Ranges of all that is neither person nor expression. Angles are in degrees, spreads are standard deviations."""

    yaw: float = 5.0
    pitch: float = 4.0
    roll: float = 3.0
    face: Range = (0.23, 0.25)  # half the width of the face over the width of the picture
    shift: float = 0.02  # of the head, over the width of the picture
    side_light: float = 0.25  # spread of the light's direction
    top_light: Range = (-0.55, -0.3)
    ambient: Range = (0.5, 0.65)
    warmth: float = 0.02
    gloss: Range = (0.03, 0.08)
    gaze: float = 0.012
    occlusion: Share = 0.0
    backdrops: tuple[str, ...] = ("studio",)
    backdrop: Range = (0.45, 0.8)  # brightness
    backdrop_colour: float = 0.04
    shrink: Range = (1.0, 1.0)  # 1 full resolution, 2 half of it scaled up again
    blur: Range = (0.0, 0.3)  # pixels of a picture of 128
    contrast: Range = (0.95, 1.1)
    brightness: Range = (-0.02, 0.04)
    gamma: Range = (0.95, 1.05)
    cast: float = 0.015
    grey: Share = 0.0  # chance of a grey picture
    fade: Range = (0.0, 0.0)  # share of colour lost in the others
    vignette: Range = (0.0, 0.1)
    screen: Range = (0.0, 0.0)  # strength of a halftone screen
    grain: Range = (0.0, 0.012)
    quality: tuple[int, int] = (85, 95)


STYLES: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name("styles.yaml"))


@dataclass(frozen=True, slots=True)
class Scene:
    """One draw of a style: what is seen, and how the picture was taken."""

    view: View
    light: Light
    gaze: Float[np.ndarray, " 2"]
    occlusion: str | None
    backdrop: str
    backdrop_colour: Float[np.ndarray, " 3"]
    clothes: Float[np.ndarray, " 3"]
    camera: dict[str, Any]  # one value for each range of the style from `shrink` to `quality`; `cast` is RGB

    @property
    def frontal(self) -> bool:
        """Whether the face looks at the camera with nothing before it: within 15° of yaw and of pitch, 20° of roll."""
        view = self.view
        angle = max(abs(view.yaw), abs(view.pitch), 0.75 * abs(view.roll))
        return self.occlusion is None and bool(angle <= np.deg2rad(15))


def find_style(name: str, overrides: Overrides) -> Style:
    """Returns a built-in style with the overrides of the settings; a new name starts from `anchor`'s values."""
    if name not in STYLES and name not in overrides:
        raise ConfigError(
            f"unknown style {name!r}; choose one of {', '.join(sorted({*STYLES, *overrides}))}, or add it to styles"
        )
    return validate(Style, {**STYLES.get(name, {}), **overrides.get(name, {})}, where=f"style {name!r}")


def draw_scene(rng: np.random.Generator, style: Style, *, size: int) -> Scene:
    """Draws a scene of a style for a square picture of `size` pixels."""
    yaw, pitch, roll = (np.deg2rad(_normal(rng, spread)) for spread in (style.yaw, style.pitch, style.roll))
    centre = size * (0.5 + _normal(rng, style.shift)), size * (0.475 + _normal(rng, style.shift))
    view = View(yaw, pitch, roll, centre, unit=size * rng.uniform(*style.face))
    direction = np.array([_normal(rng, style.side_light), rng.uniform(*style.top_light), 0.85])
    warmth = _normal(rng, style.warmth)
    light = Light(
        direction=direction / np.linalg.norm(direction),
        ambient=rng.uniform(*style.ambient),
        colour=np.array([1 + warmth, 1.0, 1 - warmth]),
        gloss=rng.uniform(*style.gloss),
    )
    first, last = ("shrink", "blur", "contrast", "brightness", "gamma"), ("vignette", "screen", "grain")
    camera: dict[str, Any] = {name: rng.uniform(*getattr(style, name)) for name in first}
    camera["blur"] *= size / 128
    camera["cast"] = 1 + np.array([_normal(rng, share * style.cast) for share in (1, 0.5, 1)])
    camera["grey"] = 1.0 if rng.random() < style.grey else rng.uniform(*style.fade)
    camera |= {name: rng.uniform(*getattr(style, name)) for name in last}
    camera["quality"] = int(rng.integers(style.quality[0], style.quality[1] + 1))
    brightness = rng.uniform(*style.backdrop)
    return Scene(
        view=view,
        light=light,
        gaze=np.array([_normal(rng, style.gaze), _normal(rng, 0.4 * style.gaze)]),
        occlusion=str(rng.choice(painting.OCCLUSIONS)) if rng.random() < style.occlusion else None,
        backdrop=style.backdrops[int(rng.integers(len(style.backdrops)))],
        backdrop_colour=np.clip(brightness + rng.normal(0, 1, 3) * style.backdrop_colour, 0.02, 1),
        clothes=np.clip(rng.uniform(0.1, 0.7) + rng.normal(0, 0.12, 3), 0.03, 0.95),
        camera=camera,
    )


def _normal(rng: np.random.Generator, deviation: float) -> float:
    return deviation * min(max(rng.standard_normal(), -2.5), 2.5)


def draw_portrait(
    person: Person, aus: Activation, scene: Scene, *, size: int, seed: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "5 2"]]:
    """Draws a square portrait and says where eyes, nose and mouth corners are; `seed` decides the fine texture only."""
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
    return develop(canvas.pixels, scene.camera, rng), head.project(head.face.landmarks())


def develop(
    pixels: Float[np.ndarray, "h w 3"], camera: dict[str, Any], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the picture after optics, film and print: `camera` holds what `Scene` says."""
    height, width = pixels.shape[:2]
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if camera["shrink"] > 1.05:
        small = (max(8, round(width / camera["shrink"])), max(8, round(height / camera["shrink"])))
        image = image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC)
    if camera["blur"] > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(camera["blur"]))
    picture = np.asarray(image, np.float32) * np.float32(1 / 255)
    picture = (picture ** np.float32(camera["gamma"]) - 0.5) * np.float32(camera["contrast"])
    picture += np.float32(0.5 + camera["brightness"])
    picture *= camera["cast"].astype(np.float32)
    if camera["grey"] > 0:
        luma = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        picture += np.float32(camera["grey"]) * (luma[..., None] - picture)
    corners, dots = _masks(height, width)
    if camera["vignette"] > 0:
        picture *= 1 - np.float32(camera["vignette"]) * corners
    if camera["screen"] > 0:
        picture += np.float32(0.16 * camera["screen"]) * dots
    if camera["grain"] > 0:
        grain = rng.standard_normal((height, width), np.float32)[..., None]
        if camera["grey"] < 0.9:
            grain = 0.75 * grain + 0.4 * rng.standard_normal((height, width, 3), np.float32)
        picture += np.float32(camera["grain"]) * grain
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
