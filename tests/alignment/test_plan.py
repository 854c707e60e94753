"""Shards keep their content where a set gains, loses or renames samples; labels are mapped by name, with a reason."""

import random
from functools import cache
from pathlib import Path

import pytest

from fer_pipeline.alignment.samples import DROPPED, OUTSIDE, LabelMap, read_samples
from fer_pipeline.alignment.shards import Cut, ends_shard
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.folds import KFold
from fer_pipeline.core.settings import DatasetSettings

ROWS = 40
IDS = [f"images/{number:06d}.jpg" for number in range(8000)]


def shards(ids: list[str], *, rows: int = ROWS, cut: Cut = "ids") -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    waiting: list[str] = []
    for one in ids:
        waiting.append(one)
        if ends_shard(one, len(waiting), rows=rows, cut=cut):
            found.append(tuple(waiting))
            waiting = []
    return [*found, tuple(waiting)] if waiting else found


@cache
def shards_before(cut: Cut) -> set[tuple[str, ...]]:
    """The shards of the set before any change."""
    return set(shards(IDS, cut=cut))


def test_nothing_is_lost_and_lengths_are_bounded() -> None:
    found = shards(IDS)
    assert [one for shard in found for one in shard] == IDS
    lengths = [len(shard) for shard in found[:-1]]
    assert min(lengths) >= ROWS // 4
    assert max(lengths) <= 2 * ROWS
    # Ten and a geometric law of one in forty, cut at 80: 10 + 40 (1 - (39/40)^70) = 43.2 on average.
    assert sum(lengths) / len(lengths) == pytest.approx(43.2, abs=4)


def test_by_count_all_have_one_length() -> None:
    assert {len(shard) for shard in shards(IDS, cut="count")} == {ROWS}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_shards(rows: int) -> None:
    assert {len(shard) for shard in shards(IDS[:500], rows=rows)} <= set(range(1, 2 * rows + 1))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("change", ["lost", "gained", "renamed"])
def test_a_change_anywhere_moves_few_shards(change: str, seed: int) -> None:
    place = random.Random(seed).randrange(len(IDS))
    new = [] if change == "lost" else [f"new/{seed}.jpg"]
    changed = IDS[:place] + new + IDS[place + (change != "gained") :]
    assert 1 <= len(set(shards(changed)) - shards_before("ids")) <= 6
    assert len(set(shards(changed, cut="count")) - shards_before("count")) > (6 if place < 7000 else 0) or (
        change == "renamed"
    )


def test_a_set_that_grows_at_its_end_keeps_all_but_the_last() -> None:
    before, after = shards(IDS), shards([*IDS, "more/1.jpg", "more/2.jpg"])
    assert after[: len(before) - 1] == before[:-1]


CLASSES = ("anger", "happiness", "neutral")


def labels(**classes: str | None) -> LabelMap:
    return LabelMap(DatasetSettings(adapter="csv", path=Path("x"), classes=classes), CLASSES, name="set")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("anger", 0),
        ("Angry", 0),
        (" HAPPY ", 1),
        ("smile", 1),
        (None, None),
        ("disgust", OUTSIDE),
        ("", OUTSIDE),
        ("1", OUTSIDE),
        *((word, OUTSIDE) for word in ("None", "none", "nan", "NaN", "null", "NA", "n/a", "<NA>")),
    ],
)
def test_spellings(word: str | None, expected: int | str | None) -> None:
    assert labels().look_up(word) == expected


def test_no_label_is_a_class_where_the_settings_say_so() -> None:
    named = labels(**{"": "neutral"})
    assert [named.look_up(word) for word in (None, "", " ")] == [2, 2, 2]
    assert labels(**{"": None}).look_up(None) == DROPPED


def test_the_settings_come_first() -> None:
    look_up = labels(**{"7": "Happy", "contempt": None, "angry": "neutral"}).look_up
    assert look_up("7") == 1
    assert look_up("contempt") == DROPPED
    assert look_up("angry") == 2, "a mapping may overrule a spelling"
    assert look_up("Angry") == 0


def test_a_mapping_to_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.set\.classes maps '3' to 'fear', .* anger, happiness, neutral"):
        labels(**{"3": "fear"})


def test_a_protocol_divides_what_has_a_class(tmp_path: Path) -> None:
    """Persons by hand: a and b are the first group of four with a class; the others' own splits count for nothing."""
    for name in ("test/joy/b", "test/joy/c", "train/sad/a", "train/sad/d", "train/other/z"):
        file = tmp_path / name / "1.png"
        file.parent.mkdir(parents=True)
        file.touch()
    levels = {"levels": ["split", "class", "subject"]}
    protocol = {"name": "k_fold", "folds": 2}
    found = {}
    for fold in (1, 2):
        dataset = DatasetSettings.model_validate(
            {
                "adapter": "image_folder",
                "path": tmp_path,
                "options": levels,
                "classes": {"other": None},
                "protocol": {**protocol, "fold": fold},
            }
        )
        samples = read_samples(dataset, ("happiness", "sadness"), name="set")
        found[fold] = {str(sample.subject): sample.split for sample in samples}
    tests = {fold: {person for person, split in splits.items() if split == "test"} for fold, splits in found.items()}
    assert tests == {1: {"a", "b"}, 2: {"c", "d"}}
    assert found[1]["z"] == "train"


def test_a_protocol_that_cannot_divide_names_the_set(tmp_path: Path) -> None:
    (tmp_path / "sad").mkdir()
    (tmp_path / "sad" / "1.png").touch()
    dataset = DatasetSettings(adapter="image_folder", path=tmp_path, protocol=KFold(name="k_fold"))
    with pytest.raises(DataError, match="data set 'set': no sample names its person"):
        list(read_samples(dataset, ("happiness", "sadness"), name="set"))
