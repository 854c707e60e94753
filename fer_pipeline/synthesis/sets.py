"""The sets of the demo world: settings and a seed in, portraits with their rows of data and of truth out.

Portrait i of a split depends only on (seed, set, split, i) and the settings, never on how many are drawn or by whom.
Classes take turns in shuffled blocks, so every whole block is balanced exactly. No subject is in two splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.synthesis.action_units import PROTOTYPES
from fer_pipeline.synthesis.camera import encode_jpeg
from fer_pipeline.synthesis.people import Person, Population, draw_person
from fer_pipeline.synthesis.performances import Acting, Kind, draw_performance
from fer_pipeline.synthesis.portraits import Portrait, draw_portrait
from fer_pipeline.synthesis.styles import Style, draw_scene, find_style

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SetSettings(Settings):
    """One set: who, how many, what they show, in which styles."""

    splits: Annotated[dict[Split, Count], Field(min_length=1)]
    subjects: Count | dict[Split, Count] = 40  # different people in each split
    styles: Annotated[dict[str, Weight], Field(min_length=1)] = Field({"anchor": 1.0})  # how often each is drawn
    classes: Annotated[tuple[str, ...], Field(min_length=1)] = BASIC_7
    balance: dict[str, Annotated[int, Field(ge=0)]] = Field({})  # turns in each block; 1 where a class is not named
    population: Population = Population()
    acting: Acting = Acting()
    labelled: bool = True
    label_noise: Share = 0.0  # share of labels that name another class

    @model_validator(mode="after")
    def _names_agree(self) -> "SetSettings":
        unknown = [name for name in self.classes if name not in PROTOTYPES]
        if unknown:
            raise ValueError(f"classes: {unknown[0]!r} has no prototype; choose among {', '.join(PROTOTYPES)}")
        strange = [name for name in self.balance if name not in self.classes]
        if strange:
            raise ValueError(f"balance: {strange[0]!r} is not among the classes {', '.join(self.classes)}")
        if not self.turns():
            raise ValueError("balance leaves no class a turn; give one at least 1")
        missing = [split for split in self.splits if isinstance(self.subjects, dict) and split not in self.subjects]
        if missing:
            raise ValueError(f"subjects names no number for the split {missing[0]!r}")
        return self

    def turns(self) -> list[str]:
        """The classes of one block, each as often as its turn comes."""
        return [name for name in self.classes for _ in range(self.balance.get(name, 1))]

    def subjects_of(self, split: Split) -> int:
        """The number of people in a split."""
        return self.subjects[split] if isinstance(self.subjects, dict) else self.subjects


@dataclass(frozen=True, slots=True)
class Turn:
    """Which portrait: its split and its number there."""

    split: Split
    number: int

    @property
    def sample_id(self) -> str:
        """Stable name within the set."""
        return f"{self.split}-{self.number:07d}"


@dataclass(frozen=True, slots=True)
class Row:
    """All that is known of one drawn portrait; the first five fields are data, the rest is truth."""

    sample_id: str
    image: bytes
    label: str | None
    subject: str
    split: str
    kind: Kind
    detail: str
    dominant: str | None
    intensity: float
    aus: np.ndarray
    style: str
    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees
    frontal: bool
    landmarks: np.ndarray


class Studio:
    """Draws the portraits of one set."""

    def __init__(
        self,
        settings: SetSettings,
        *,
        seed: int,
        name: str,
        size: int = 128,
        styles: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.settings, self.seed, self.name, self.size = settings, seed, name, size
        self._styles: dict[str, Style] = {style: find_style(style, styles or {}) for style in settings.styles}
        self._people: dict[str, Person] = {}

    def turns(self) -> list[Turn]:
        """Every portrait of the set, split by split."""
        return [Turn(split, number) for split, count in sorted(self.settings.splits.items()) for number in range(count)]

    def expression(self, turn: Turn) -> str:
        """The class whose turn it is."""
        block = self.settings.turns()
        order = np.random.default_rng(
            derive(self.seed, self.name, turn.split, "block", turn.number // len(block))
        ).permutation(len(block))
        return block[int(order[turn.number % len(block)])]

    def label(self, turn: Turn) -> str | None:
        """The label that the set gives: the expression whose turn it is, another one by mistake, or none."""
        expression = self.expression(turn)
        others = [name for name in self.settings.classes if name != expression]
        rng = np.random.default_rng(derive(self.seed, self.name, turn.split, turn.number, "label"))
        wrong = bool(others) and rng.random() < self.settings.label_noise
        return None if not self.settings.labelled else others[int(rng.integers(len(others)))] if wrong else expression

    def person(self, subject: str) -> Person:
        """The same person for the same subject in every portrait."""
        if subject not in self._people:
            rng = np.random.default_rng(derive(self.seed, self.name, "subject", subject))
            self._people[subject] = draw_person(rng, self.settings.population)
        return self._people[subject]

    def draw(self, turn: Turn) -> tuple[Portrait, Row]:
        """One portrait and everything known about it."""
        settings = self.settings
        seed = derive(self.seed, self.name, turn.split, turn.number)
        rng = np.random.default_rng(seed)
        subject = f"{self.name}-{turn.split}-{int(rng.integers(settings.subjects_of(turn.split))):05d}"
        names = sorted(settings.styles)
        weights = np.array([settings.styles[style] for style in names])
        style = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        performance = draw_performance(rng, settings.acting, self.expression(turn), settings.classes)
        scene = draw_scene(rng, self._styles[style], size=self.size)
        portrait = draw_portrait(
            self.person(subject), performance.aus, scene, size=self.size, seed=derive(seed, "texture")
        )
        view = np.rad2deg([scene.view.yaw, scene.view.pitch, scene.view.roll])
        row = Row(
            sample_id=turn.sample_id,
            image=encode_jpeg(portrait.image, scene.exposure.quality),
            label=self.label(turn),
            subject=subject,
            split=turn.split,
            kind=performance.kind,
            detail=performance.detail,
            dominant=performance.dominant,
            intensity=performance.intensity,
            aus=performance.aus,
            style=style,
            pose=(float(view[0]), float(view[1]), float(view[2])),
            frontal=scene.frontal,
            landmarks=portrait.landmarks.astype(np.float32),
        )
        return portrait, row


def draw_set(
    settings: SetSettings, seed: int, name: str, *, size: int = 128, styles: dict[str, dict[str, Any]] | None = None
) -> tuple[list[np.ndarray], list[Row]]:
    """A whole set in memory: decoded pictures before JPEG, and their rows."""
    studio = Studio(settings, seed=seed, name=name, size=size, styles=styles)
    drawn = [studio.draw(turn) for turn in studio.turns()]
    return [portrait.image for portrait, _ in drawn], [row for _, row in drawn]


def parts(turns: list[Turn], rows: int) -> Iterator[tuple[int, list[Turn]]]:
    """Turns cut into numbered parts of at most `rows`."""
    for number, start in enumerate(range(0, len(turns), rows)):
        yield number, turns[start : start + rows]
