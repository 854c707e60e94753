"""Define a network's settings, and the card of a checkpoint, which rebuilds the network and says how it was trained."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.core.settings import AllSeen, PlainName, Settings, validate
from fer_pipeline.networks.preprocessing import MAX_SIZE, Normalisation, Preprocessing

CARD = "card.json"
CARD_VERSION = 1
FLOOR = 1e-6  # of the probabilities that are joined: one sure mistake is then not all that counts

# Stages of a backbone, each with the side of the grid that its map is averaged to.
Grids = Annotated[dict[str, Annotated[int, Field(ge=1, le=MAX_SIZE)]], Field(min_length=1)]


def is_none(value: Any) -> bool:
    """Leaves a setting of `exclude_if` out of cards and keys, so that those from before there was one stay the same."""
    return value is None


def is_empty(value: Any) -> bool:
    """As `is_none`, of a list or of what is true or false."""
    return not value


class OnnxSettings(Settings):
    """An expression network of the user's in an ONNX file, with what the file does not say."""

    path: Path
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]  # in the order of the outputs, in any spelling
    preprocessing: Preprocessing
    outputs: Literal["logits", "probabilities"] = "logits"


class Member(Settings):
    """One of the networks that `joined` joins: a registered one by its name, or one in an ONNX file."""

    name: PlainName | None = None  # of registered weights
    onnx: Annotated[OnnxSettings | None, Field(exclude_if=is_none)] = None
    features: Grids | None = None  # stages of a face network; null: its own features, or log-probabilities of classes

    @model_validator(mode="after")
    def _is_one(self) -> "Member":
        if (self.name is None) == (self.onnx is None):
            raise ValueError("a member has a name (of registered weights) or onnx (a file), and not both")
        return self

    def __str__(self) -> str:
        return self.name or str(self.onnx.path if self.onnx else "")


class NetworkSettings(Settings):
    """A backbone by name and what stands around it."""

    name: str = "small"  # small, resnet18/34/50, vgg16, ir_se50, iresnet50, expnet, timm/<name of timm>
    size: Annotated[int, Field(ge=8, le=MAX_SIZE)] | None = None  # side of the input in pixels; null: that of the crops
    grey: bool = False
    width: Annotated[int, Field(ge=4, le=512)] = 16  # of `small` only: channels of its first layer
    norm: Literal["batch", "group"] = "batch"  # of `small` only: group has no running statistics
    # null: the backbone's own features; else {stage: side of the grid its map is averaged to}, joined
    features: Annotated[Grids | None, Field(exclude_if=is_none)] = None
    # of `joined` only: the registered networks whose features are joined; they bring their weights
    members: Annotated[tuple[Member, ...], Field(exclude_if=is_empty)] = ()
    # of `joined` only: the least probability that an expression network's opinion counts with; null: none
    floor: Annotated[float | None, Field(gt=0, lt=1, exclude_if=lambda value: value == FLOOR)] = FLOOR
    # null: the features as they are; else one more layer of that size
    feature_dim: Annotated[int, Field(ge=2, le=16_384)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on the features, before the head
    normalisation: Normalisation | None = None  # null: that of the weights, or mean = std = 0.5 without weights

    def sized(self, crop: int) -> "NetworkSettings":
        return self.model_copy(update={"size": self.size or crop})


def preprocessing_of(settings: NetworkSettings, weights: Normalisation | None) -> Preprocessing:
    """Returns the preprocessing of a sized network: the settings' own, else that of the weights, else the plain one."""
    assert settings.size is not None, "call sized() first"
    chosen = settings.normalisation or weights or Normalisation()
    return Preprocessing(size=settings.size, grey=settings.grey, **chosen.model_dump())


class Card(Settings):
    version: int = CARD_VERSION
    network: NetworkSettings
    classes: Annotated[tuple[PlainName, ...], Field(min_length=1)]
    preprocessing: Preprocessing
    # of a labeller that mines by the features of other stages than its head reads: these are embedded
    mining_features: Annotated[Grids | None, Field(exclude_if=is_none)] = None
    # whether the network also has a head that says how sure it is
    confidence: Annotated[bool, Field(exclude_if=is_empty)] = False
    training: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)
    # registered weights behind the model that were trained on data sets of others, whatever way they came
    seen: Annotated[AllSeen, Field(exclude_if=is_empty)] = Field(default_factory=dict)


def read_card(folder: Path) -> Card:
    """Reads the card; one that is missing or of another version is a DataError."""
    if not folder.is_dir():
        raise DataError(f"no checkpoint in {folder}; train it first (dvc repro) or name another folder")
    if not (folder / CARD).exists() and (models := sorted(path.parent.name for path in folder.glob(f"*/{CARD}"))):
        raise DataError(f"{folder} holds the models {', '.join(models)}; name one of them, {folder / models[0]}")
    card = validate(Card, read_json(folder / CARD), where=str(folder / CARD))
    if card.version != CARD_VERSION:
        raise DataError(f"{folder / CARD} has version {card.version}, expected {CARD_VERSION}; train the model again")
    return card


def card_beside(file: Path | None) -> Card | None:
    """Reads the card beside a file of weights; None where they are not those of a checkpoint of ours."""
    return read_card(file.parent) if file is not None and (file.parent / CARD).is_file() else None
