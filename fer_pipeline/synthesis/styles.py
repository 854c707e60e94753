"""Define how the pictures of a source look, as ranges, and draw scenes from them.

`anchor` is a clean studio, `wild` is everything, `film` (dark, grainy, flat) and `press` (grey, hard, screened) are the
two shifted domains. A pair is the range of a uniform draw; a `chance` is a probability.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pydantic import Field

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings, validate
from fer_pipeline.synthesis.head import View
from fer_pipeline.synthesis.skin import Light
from fer_pipeline.synthesis.surroundings import BACKDROPS, OCCLUSIONS

Range = tuple[float, float]
Overrides = Mapping[str, Mapping[str, Any]]  # by style: changed fields of a built-in style, or a new one
Share = Annotated[float, Field(ge=0, le=1)]


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
    shrink: Range = (1.0, 1.0)
    blur: Range = (0.0, 0.3)
    contrast: Range = (0.95, 1.1)
    brightness: Range = (-0.02, 0.04)
    gamma: Range = (0.95, 1.05)
    cast: float = 0.015
    grey: Share = 0.0  # chance of a grey picture
    fade: Range = (0.0, 0.0)  # share of colour lost in the others
    vignette: Range = (0.0, 0.1)
    screen: Range = (0.0, 0.0)
    grain: Range = (0.0, 0.012)
    quality: tuple[int, int] = (85, 95)


STYLES: dict[str, Style] = {
    "anchor": Style(),
    "wild": Style(
        yaw=10, pitch=6, roll=6, face=(0.2, 0.27), shift=0.04, side_light=0.42, top_light=(-0.7, 0.0),
        ambient=(0.35, 0.7), warmth=0.06, gloss=(0.0, 0.14), gaze=0.025, occlusion=0.06,
        backdrops=BACKDROPS, backdrop=(0.1, 0.9), backdrop_colour=0.12,
        shrink=(1.0, 1.5), blur=(0.0, 0.7), contrast=(0.7, 1.3), brightness=(-0.12, 0.08), gamma=(0.8, 1.2),
        cast=0.06, grey=0.25, fade=(0.0, 0.6), vignette=(0.0, 0.4), screen=(0.0, 0.25), grain=(0.0, 0.03),
        quality=(50, 95),
    ),
    "film": Style(
        yaw=8, pitch=5, roll=5, face=(0.22, 0.26), shift=0.03, side_light=0.5, top_light=(-0.6, -0.1),
        ambient=(0.4, 0.6), warmth=0.06, gaze=0.025, occlusion=0.02,
        backdrops=("studio", "blobs", "room"), backdrop=(0.08, 0.4), backdrop_colour=0.06,
        shrink=(1.0, 1.4), blur=(0.3, 0.7), contrast=(0.62, 0.82), brightness=(-0.14, -0.05), gamma=(0.8, 1.0),
        cast=0.07, fade=(0.2, 0.6), vignette=(0.2, 0.5), grain=(0.02, 0.035), quality=(60, 85),
    ),
    "press": Style(
        yaw=8, pitch=5, roll=5, face=(0.22, 0.26), shift=0.03, side_light=0.45, top_light=(-0.6, -0.1),
        ambient=(0.4, 0.6), gaze=0.02, occlusion=0.02,
        backdrops=("studio", "stripes", "room"), backdrop=(0.3, 0.95), backdrop_colour=0.08,
        shrink=(1.0, 1.3), blur=(0.1, 0.5), contrast=(1.15, 1.4), brightness=(-0.08, 0.0), gamma=(0.85, 1.05), grey=1.0,
        screen=(0.1, 0.35), grain=(0.01, 0.025), quality=(55, 85),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exposure:
    """How one picture was taken."""

    shrink: float  # 1 full resolution, 2 half of it scaled up again
    blur: float  # pixels
    contrast: float
    brightness: float
    gamma: float
    cast: Float[np.ndarray, " 3"]
    grey: float  # share of colour that is lost
    vignette: float
    screen: float  # strength of a halftone screen
    grain: float
    quality: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One draw of a style."""

    view: View
    light: Light
    gaze: Float[np.ndarray, " 2"]
    occlusion: str | None
    backdrop: str
    backdrop_colour: Float[np.ndarray, " 3"]
    clothes: Float[np.ndarray, " 3"]
    exposure: Exposure

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
    base = STYLES.get(name, Style())
    if name not in overrides:
        return base
    return validate(Style, {**base.model_dump(), **overrides[name]}, where=f"style {name!r}")


def draw_scene(rng: np.random.Generator, style: Style, *, size: int) -> Scene:
    """Draws a scene of a style for a square picture of `size` pixels."""
    view = View(
        yaw=np.deg2rad(_normal(rng, style.yaw)),
        pitch=np.deg2rad(_normal(rng, style.pitch)),
        roll=np.deg2rad(_normal(rng, style.roll)),
        centre=(size * (0.5 + _normal(rng, style.shift)), size * (0.475 + _normal(rng, style.shift))),
        unit=size * rng.uniform(*style.face),
    )
    direction = np.array([_normal(rng, style.side_light), rng.uniform(*style.top_light), 0.85])
    warmth = _normal(rng, style.warmth)
    light = Light(
        direction=direction / np.linalg.norm(direction),
        ambient=rng.uniform(*style.ambient),
        colour=np.array([1 + warmth, 1.0, 1 - warmth]),
        gloss=rng.uniform(*style.gloss),
    )
    exposure = Exposure(
        shrink=rng.uniform(*style.shrink),
        blur=rng.uniform(*style.blur) * size / 128,
        contrast=rng.uniform(*style.contrast),
        brightness=rng.uniform(*style.brightness),
        gamma=rng.uniform(*style.gamma),
        cast=1 + np.array([_normal(rng, share * style.cast) for share in (1, 0.5, 1)]),
        grey=1.0 if rng.random() < style.grey else rng.uniform(*style.fade),
        vignette=rng.uniform(*style.vignette),
        screen=rng.uniform(*style.screen),
        grain=rng.uniform(*style.grain),
        quality=int(rng.integers(style.quality[0], style.quality[1] + 1)),
    )
    brightness = rng.uniform(*style.backdrop)
    return Scene(
        view=view,
        light=light,
        exposure=exposure,
        gaze=np.array([_normal(rng, style.gaze), _normal(rng, 0.4 * style.gaze)]),
        occlusion=str(rng.choice(OCCLUSIONS)) if rng.random() < style.occlusion else None,
        backdrop=style.backdrops[int(rng.integers(len(style.backdrops)))],
        backdrop_colour=np.clip(brightness + rng.normal(0, 1, 3) * style.backdrop_colour, 0.02, 1),
        clothes=np.clip(rng.uniform(0.1, 0.7) + rng.normal(0, 0.12, 3), 0.03, 0.95),
    )


def _normal(rng: np.random.Generator, deviation: float) -> float:
    return deviation * min(max(rng.standard_normal(), -2.5), 2.5)
