"""Define how the pictures of a source look, as ranges, and draw scenes from them.

`anchor` is a clean studio, `wild` is everything, `film` (dark, grainy, flat) and `press` (grey, hard, screened) are the
two shifted domains. A pair is the range of a uniform draw; a `chance` is a probability.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import Settings, validate
from fer_pipeline.synthesis.expressions import Share
from fer_pipeline.synthesis.head import View
from fer_pipeline.synthesis.painting import OCCLUSIONS
from fer_pipeline.synthesis.skin import Light

Range = tuple[float, float]
Overrides = Mapping[str, Mapping[str, Any]]  # by style: changed fields of a built-in style, or a new one


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


STYLES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("styles.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One draw of a style: what is seen, and how the picture was taken."""

    view: View
    light: Light
    gaze: Float[np.ndarray, " 2"]
    occlusion: str | None
    backdrop: str
    backdrop_colour: Float[np.ndarray, " 3"]
    clothes: Float[np.ndarray, " 3"]
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
    photograph = {
        "shrink": rng.uniform(*style.shrink),
        "blur": rng.uniform(*style.blur) * size / 128,
        "contrast": rng.uniform(*style.contrast),
        "brightness": rng.uniform(*style.brightness),
        "gamma": rng.uniform(*style.gamma),
        "cast": 1 + np.array([_normal(rng, share * style.cast) for share in (1, 0.5, 1)]),
        "grey": 1.0 if rng.random() < style.grey else rng.uniform(*style.fade),
        "vignette": rng.uniform(*style.vignette),
        "screen": rng.uniform(*style.screen),
        "grain": rng.uniform(*style.grain),
        "quality": int(rng.integers(style.quality[0], style.quality[1] + 1)),
    }
    brightness = rng.uniform(*style.backdrop)
    return Scene(
        view=view,
        light=light,
        gaze=np.array([_normal(rng, style.gaze), _normal(rng, 0.4 * style.gaze)]),
        occlusion=str(rng.choice(OCCLUSIONS)) if rng.random() < style.occlusion else None,
        backdrop=style.backdrops[int(rng.integers(len(style.backdrops)))],
        backdrop_colour=np.clip(brightness + rng.normal(0, 1, 3) * style.backdrop_colour, 0.02, 1),
        clothes=np.clip(rng.uniform(0.1, 0.7) + rng.normal(0, 0.12, 3), 0.03, 0.95),
        **photograph,
    )


def _normal(rng: np.random.Generator, deviation: float) -> float:
    return deviation * min(max(rng.standard_normal(), -2.5), 2.5)
