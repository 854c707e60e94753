"""Read a checkpoint's card: network, order of the classes, preprocessing, and what it was trained with and on."""

from pathlib import Path
from typing import Any

from pydantic import Field

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.core.settings import Settings, validate
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import NetworkSettings

CARD = "card.json"
CARD_VERSION = 1


class Card(Settings):
    """What stands beside the weights."""

    version: int = CARD_VERSION
    network: NetworkSettings
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    training: dict[str, Any] = Field(default_factory=dict)
    data: dict[str, str] = Field(default_factory=dict)


def read_card(folder: Path) -> Card:
    """Reads the card; one that is missing or of another version is a DataError."""
    if not folder.is_dir():
        raise DataError(f"no checkpoint in {folder}; train it first (dvc repro) or name another folder")
    card = validate(Card, read_json(folder / CARD), where=str(folder / CARD))
    if card.version != CARD_VERSION:
        raise DataError(f"{folder / CARD} has version {card.version}, expected {CARD_VERSION}; train the model again")
    return card
