"""Sets: seeded, balanced, independent of their size, no person in two splits."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.settings import validate
from fer_pipeline.synthesis.sets import SetSettings, Studio, Turn, draw_set

SMALL = SetSettings(splits={"train": 8, "test": 4}, subjects=3, styles={"anchor": 1.0, "wild": 1.0})


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again = draw_set(SMALL, 5, "demo", size=64), draw_set(SMALL, 5, "demo", size=64)
    assert [row.image for row in first[1]] == [row.image for row in again[1]]
    other_seed, other_name = draw_set(SMALL, 6, "demo", size=64), draw_set(SMALL, 5, "other", size=64)
    for other in (other_seed, other_name):
        assert not {row.image for row in first[1]} & {row.image for row in other[1]}


def test_a_portrait_does_not_depend_on_how_many_are_drawn() -> None:
    larger = SMALL.model_copy(update={"splits": {"train": 50, "test": 1}})
    one = Studio(SMALL, seed=5, name="demo", size=64).draw(Turn("train", 7))[1]
    same = Studio(larger, seed=5, name="demo", size=64).draw(Turn("train", 7))[1]
    assert one.image == same.image
    assert one.subject == same.subject


def test_rows_name_what_was_drawn() -> None:
    images, rows = draw_set(SMALL, 5, "demo", size=64)
    assert len(images) == len(rows) == 12
    assert [row.sample_id for row in rows[:2]] == ["test-0000000", "test-0000001"]
    assert len({row.sample_id for row in rows}) == 12
    for image, row in zip(images, rows, strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(row.image)).convert("RGB")).astype(float)
        assert decoded.shape == image.shape == (64, 64, 3)
        assert np.abs(decoded - image).mean() < 12  # JPEG of this picture and of no other


def test_classes_are_balanced_in_every_whole_block() -> None:
    settings = SetSettings(splits={"train": 70}, balance={"fear": 2, "anger": 0})
    studio = Studio(settings, seed=0, name="demo")
    names = [studio.expression(turn) for turn in studio.turns()]
    assert Counter(names) == {"fear": 20, **{name: 10 for name in BASIC_7 if name not in ("fear", "anger")}}
    assert Counter(names[:7]) == Counter(names[7:14])
    assert names[:7] != names[7:14]


def test_no_subject_is_in_two_splits_and_people_stay_themselves() -> None:
    settings = SetSettings(splits={"train": 20, "test": 20}, subjects={"train": 3, "test": 5})
    _, rows = draw_set(settings, 1, "demo", size=48)
    people = {split: {row.subject for row in rows if row.split == split} for split in ("train", "test")}
    assert not people["train"] & people["test"]
    assert len(people["train"]) == 3
    assert 4 <= len(people["test"]) <= 5
    again = Studio(settings, seed=1, name="demo"), Studio(settings, seed=1, name="demo")
    first, second = (studio.person("demo-train-00001") for studio in again)
    assert first.eye_x == second.eye_x
    assert first.hair_style == second.hair_style


def test_labels() -> None:
    turns = [Turn("train", number) for number in range(1000)]

    def wrong(**changes: object) -> float:
        studio = Studio(SetSettings.model_validate({"splits": {"train": 1000}, **changes}), seed=0, name="demo")
        return float(np.mean([studio.label(turn) != studio.expression(turn) for turn in turns]))

    assert wrong() == 0
    assert wrong(label_noise=0.3) == pytest.approx(0.3, abs=0.045)
    pool = Studio(SMALL.model_copy(update={"labelled": False}), seed=0, name="pool", size=48)
    assert {pool.label(turn) for turn in turns[:20]} == {None}
    assert pool.draw(turns[0])[1].label is None
    clean = Studio(SMALL, seed=0, name="demo", size=48)
    for turn in turns[:8]:
        row = clean.draw(turn)[1]
        assert row.label == row.dominant == clean.expression(turn)


def test_style_changes_the_picture_and_not_the_person() -> None:
    def brightness(style: str) -> float:
        settings = SetSettings(splits={"train": 12}, subjects=4, styles={style: 1.0})
        return float(np.mean(draw_set(settings, 0, "demo", size=64)[0]))

    assert brightness("film") < 0.75 * brightness("anchor")
    press = draw_set(SetSettings(splits={"train": 3}, styles={"press": 1.0}), 0, "demo", size=64)[0]
    assert all(
        (image[..., 0] == image[..., 2]).all() or np.ptp(image.astype(int), axis=2).max() <= 20 for image in press
    )


def test_styles_can_be_changed_and_added() -> None:
    settings = SetSettings(splits={"train": 6}, styles={"tilted": 1.0})
    rows = draw_set(settings, 0, "demo", size=48, styles={"tilted": {"roll": 40.0, "yaw": 0.0, "pitch": 0.0}})[1]
    assert max(abs(row.pose[2]) for row in rows) > 20
    assert {row.pose[:2] for row in rows} == {(0.0, 0.0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": {"oil": 1.0}}, "unknown style 'oil'; choose one of anchor, film, press, wild"),
        ({"classes": ["joy"]}, "'joy' has no prototype"),
        ({"balance": {"contempt": 2}}, "'contempt' is not among the classes"),
        ({"subjects": {"test": 3}}, "no number for the split 'train'"),
        ({"classes": ["anger"], "balance": {"anger": 0}}, "leaves no class a turn"),
    ],
)
def test_faults_are_told_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        Studio(validate(SetSettings, {"splits": {"train": 2}, **change}, where="sets.demo"), seed=0, name="demo")
    assert "\n" not in str(told.value)
