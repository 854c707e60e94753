"""Labels by name: the settings' mapping first, then the known spellings, and what is left out has its reason."""

from pathlib import Path

import pytest

from fer_pipeline.alignment.labels import DROPPED, OUTSIDE, Label, LabelMap
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import DatasetSettings

CLASSES = ("anger", "happiness", "neutral")


def labels(**classes: str | None) -> LabelMap:
    return LabelMap(DatasetSettings(adapter="csv", path=Path("x"), classes=classes), CLASSES, name="set")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("anger", Label(0)),
        ("Angry", Label(0)),
        (" HAPPY ", Label(1)),
        ("smile", Label(1)),
        (None, Label(None)),
        ("disgust", Label(None, OUTSIDE)),
        ("", Label(None, OUTSIDE)),
        ("1", Label(None, OUTSIDE)),
    ],
)
def test_spellings(word: str | None, expected: Label) -> None:
    assert labels().read(word) == expected


def test_the_settings_come_first() -> None:
    read = labels(**{"7": "Happy", "contempt": None, "angry": "neutral"}).read
    assert read("7") == Label(1)
    assert read("contempt") == Label(None, DROPPED)
    assert read("angry") == Label(2), "a mapping may overrule a spelling"
    assert read("Angry") == Label(0)


def test_a_mapping_to_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.set\.classes maps '3' to 'fear', .* anger, happiness, neutral"):
        labels(**{"3": "fear"})
