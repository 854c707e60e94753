"""Draw the portraits of a demo set and tabulate what the pipeline may see and, apart from it, the truth.

Portrait i of a split depends only on (seed, set, split, i) and the settings, never on how many are drawn or by whom.
Classes take turns in shuffled blocks, so every whole block is balanced exactly. No subject is in two splits.
Data and truth never share a table: no stage that learns reads the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from pydantic import Field, model_validator

from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.synthesis import people
from fer_pipeline.synthesis.portraits import Overrides, draw_portrait, draw_scene, encode_jpeg, find_style

_OPTIONAL = ("label", "dominant")  # null: not labelled; no prototype dominates
_DATA = {"sample_id": pa.string(), "image": pa.binary()} | dict.fromkeys(("label", "subject", "split"), pa.string())
_TRUTH = dict.fromkeys(("face_id", "dominant", "kind", "detail"), pa.string()) | {  # the id that alignment gives a face
    "intensity": pa.float32(),
    "aus": pa.list_(pa.float32(), 2 * len(people.ORDER)),  # left and right of each unit
    "style": pa.string(),
    "pose": pa.list_(pa.float32(), 3),  # yaw, pitch, roll in degrees
    "frontal": pa.bool_(),
    "landmarks": pa.list_(pa.float32(), 10),  # x, y of five points; pixel i is [i, i + 1)
}
DATA_SCHEMA, TRUTH_SCHEMA = (
    pa.schema([pa.field(name, kind, nullable=name in _OPTIONAL) for name, kind in columns.items()])
    for columns in (_DATA, _TRUTH)
)

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0)]


class SetSettings(Settings):
    """One set: who, how many, what they show, in which styles."""

    splits: Annotated[dict[Split, Count], Field(min_length=1)]
    subjects: Count | dict[Split, Count] = 40  # different people in each split
    styles: Annotated[dict[str, Weight], Field(min_length=1)] = Field({"anchor": 1.0})  # how often each is drawn
    classes: Annotated[tuple[str, ...], Field(min_length=1)] = BASIC_7
    balance: dict[str, Annotated[int, Field(ge=0)]] = Field({})  # turns in each block; 1 where a class is not named
    population: people.Population = people.Population()
    acting: people.Acting = people.Acting()
    labelled: bool = True
    label_noise: people.Share = 0.0  # share of labels that name another class

    @model_validator(mode="after")
    def _check_names(self) -> "SetSettings":
        for name in (name for name in self.classes if name not in people.PROTOTYPES):
            raise ValueError(f"classes: {name!r} has no prototype; choose among {', '.join(people.PROTOTYPES)}")
        for name in (name for name in self.balance if name not in self.classes):
            raise ValueError(f"balance: {name!r} is not among the classes {', '.join(self.classes)}")
        if not self.block():
            raise ValueError("balance leaves no class a turn; give one at least 1")
        for split in self.splits:
            if isinstance(self.subjects, dict) and split not in self.subjects:
                raise ValueError(f"subjects names no number for the split {split!r}")
        return self

    def block(self) -> list[str]:
        """Returns the classes of one block, each as often as its turn comes."""
        return [name for name in self.classes for _ in range(self.balance.get(name, 1))]


class SampleKey(NamedTuple):
    """Names a portrait by its split and its number there."""

    split: Split
    number: int


@dataclass(frozen=True)
class Row:
    """All that is known of one drawn portrait; the first five fields are data, the rest is truth."""

    sample_id: str  # stable within the set
    image: bytes
    label: str | None
    subject: str
    split: str
    performance: people.Performance
    style: str
    pose: tuple[float, float, float]  # yaw, pitch, roll in degrees
    frontal: bool
    landmarks: np.ndarray  # float32[5, 2]


class PortraitSet:
    """Draws the portraits of one set."""

    def __init__(
        self, settings: SetSettings, *, seed: int, name: str, size: int = 128, styles: Overrides | None = None
    ) -> None:
        self.settings, self.seed, self.name, self.size = settings, seed, name, size
        self._styles = {style: find_style(style, styles or {}) for style in sorted(settings.styles)}
        self._people: dict[str, people.Person] = {}

    def keys(self) -> list[SampleKey]:
        """Returns every portrait of the set, split by split."""
        return [SampleKey(split, k) for split, count in sorted(self.settings.splits.items()) for k in range(count)]

    def expression(self, key: SampleKey) -> str:
        """Returns the class whose turn it is."""
        block = self.settings.block()
        rng = self._rng(key.split, "block", key.number // len(block))
        return block[int(rng.permutation(len(block))[key.number % len(block)])]

    def label(self, key: SampleKey) -> str | None:
        """Returns the label that the set gives: the class whose turn it is, another one by mistake, or none."""
        if not self.settings.labelled:
            return None
        expression = self.expression(key)
        others = [name for name in self.settings.classes if name != expression]
        rng = self._rng(key.split, key.number, "label")
        wrong = bool(others) and rng.random() < self.settings.label_noise
        return others[int(rng.integers(len(others)))] if wrong else expression

    def person(self, subject: str) -> people.Person:
        """Returns the same person for the same subject in every portrait."""
        if subject not in self._people:
            self._people[subject] = people.draw_person(self._rng("subject", subject), self.settings.population)
        return self._people[subject]

    def draw(self, key: SampleKey) -> tuple[UInt8[np.ndarray, "h w 3"], Row]:
        """Draws one portrait and returns the picture before JPEG, and everything known about it."""
        settings = self.settings
        seed = derive(self.seed, self.name, key.split, key.number)
        rng = np.random.default_rng(seed)
        subjects = settings.subjects[key.split] if isinstance(settings.subjects, dict) else settings.subjects
        subject = f"{self.name}-{key.split}-{int(rng.integers(subjects)):05d}"
        weights = np.array([settings.styles[style] for style in self._styles])
        style = list(self._styles)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        performance = people.draw_performance(rng, settings.acting, self.expression(key), settings.classes)
        scene = draw_scene(rng, self._styles[style], size=self.size)
        texture = derive(seed, "texture")
        image, landmarks = draw_portrait(self.person(subject), performance.aus, scene, size=self.size, seed=texture)
        pose = tuple(np.rad2deg([scene.view.yaw, scene.view.pitch, scene.view.roll]).tolist())
        picture = encode_jpeg(image, scene.camera["quality"])
        data = f"{key.split}-{key.number:07d}", picture, self.label(key), subject, key.split
        return image, Row(*data, performance, style, pose, scene.frontal, landmarks.astype(np.float32))

    def draw_row(self, key: SampleKey) -> Row:
        """Draws one portrait and returns only its row, which is all that need pass between processes."""
        return self.draw(key)[1]

    def _rng(self, *names: str | int) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, self.name, *names))


def data_table(rows: Sequence[Row]) -> pa.Table:
    """Tabulates what the pipeline may see."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=DATA_SCHEMA)


def truth_table(rows: Sequence[Row], *, name: str) -> pa.Table:
    """Tabulates what only the report may see of the set `name`."""
    records = []
    for row in rows:
        flat = {"aus": row.performance.aus.ravel(), "landmarks": row.landmarks.ravel()}
        records.append({**vars(row), **vars(row.performance), **flat, "face_id": f"{name}/{row.sample_id}"})
    units = ",".join(map(str, people.ORDER))
    return pa.Table.from_pylist(records, schema=TRUTH_SCHEMA.with_metadata({"action_units": units}))
