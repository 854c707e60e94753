"""Sets: seeded, balanced, independent of their size, no person in two splits."""

import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.expressions import BASIC_7
from fer_pipeline.core.settings import validate
from fer_pipeline.synthesis.sets import PortraitSet, SampleKey, SetSettings
from tests.synthesis.drawing import draw_set

SMALL = SetSettings(splits={"train": 8, "test": 4}, subjects=3, styles={"anchor": 1.0, "wild": 1.0})


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again = draw_set(SMALL, 5, "demo", size=64), draw_set(SMALL, 5, "demo", size=64)
    assert [row.image for row in first[1]] == [row.image for row in again[1]]
    other_seed, other_name = draw_set(SMALL, 6, "demo", size=64), draw_set(SMALL, 5, "other", size=64)
    for other in (other_seed, other_name):
        assert not {row.image for row in first[1]} & {row.image for row in other[1]}


def test_the_pixels_and_the_truth_are_those_of_earlier_versions() -> None:
    """A refactoring must not change the demo's data: whoever changes a portrait on purpose writes the new hash here."""
    settings = SetSettings.model_validate(
        {
            "splits": {"train": 16},
            "styles": {"anchor": 1, "wild": 2, "film": 1, "press": 1, "turned": 1},
            "population": {"glasses": 0.5, "beards": 1},
            "acting": {"mixed": 0.2, "other": 0.2, "weak": 0.2},
            "label_noise": 0.2,
        }
    )
    turned = {"yaw": 30.0, "pitch": 20.0, "roll": 30.0, "occlusion": 0.8, "backdrops": ["blobs", "stripes", "room"]}
    images, rows = draw_set(settings, 10, "pinned", size=96, styles={"turned": turned})
    digest = hashlib.sha256()
    for image, row in zip(images, rows, strict=True):
        digest.update(image.tobytes())
        truth = (row.label, row.subject, row.style, row.performance.detail, row.performance.dominant)
        digest.update(repr((truth, row.landmarks.round(2).tolist())).encode())
    assert {row.style for row in rows} == set(settings.styles)
    assert digest.hexdigest()[:16] == "24a257ec00e930d7"


def test_a_portrait_does_not_depend_on_how_many_are_drawn() -> None:
    larger = SMALL.model_copy(update={"splits": {"train": 50, "test": 1}})
    one = PortraitSet(SMALL, seed=5, name="demo", size=64).draw(SampleKey("train", 7))[1]
    same = PortraitSet(larger, seed=5, name="demo", size=64).draw(SampleKey("train", 7))[1]
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
    portraits = PortraitSet(settings, seed=0, name="demo")
    names = [portraits.expression(key) for key in portraits.keys()]
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
    again = PortraitSet(settings, seed=1, name="demo"), PortraitSet(settings, seed=1, name="demo")
    first, second = (portraits.person("demo-train-00001") for portraits in again)
    assert first.eye_x == second.eye_x
    assert first.hair_style == second.hair_style


def test_labels() -> None:
    keys = [SampleKey("train", number) for number in range(1000)]

    def wrong(**changes: object) -> float:
        portraits = PortraitSet(SetSettings.model_validate({"splits": {"train": 1000}, **changes}), seed=0, name="demo")
        return float(np.mean([portraits.label(key) != portraits.expression(key) for key in keys]))

    assert wrong() == 0
    assert wrong(label_noise=0.3) == pytest.approx(0.3, abs=0.045)
    pool = PortraitSet(SMALL.model_copy(update={"labelled": False}), seed=0, name="pool", size=48)
    assert {pool.label(key) for key in keys[:20]} == {None}
    assert pool.draw(keys[0])[1].label is None
    clean = PortraitSet(SMALL, seed=0, name="demo", size=48)
    for key in keys[:8]:
        row = clean.draw(key)[1]
        assert row.label == row.performance.dominant == clean.expression(key)


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
def test_faults_are_reported_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        PortraitSet(validate(SetSettings, {"splits": {"train": 2}, **change}, where="sets.demo"), seed=0, name="demo")
    assert "\n" not in str(raised.value)
