"""What is written comes back, several sets join in order of their names, and what does not fit is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fer_pipeline.artifacts.arrays import write_arrays
from fer_pipeline.artifacts.distilled import (
    DistilledSet,
    read_controls,
    read_distilled,
    read_probe,
    read_saved,
    saved_name,
    write_distilled,
)
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json

CLASSES = ("anger", "happiness")


def _distilled(seed: int, *, steps: int = 2, count: int = 2, mean: float = 0.5) -> DistilledSet:
    draw = np.random.default_rng(seed)
    return DistilledSet(
        images=draw.normal(size=(steps, count, 3, 4, 5)).astype(np.float32),
        labels=np.tile(np.arange(count, dtype=np.int64) % 2, (steps, 1)),
        step_sizes=draw.random(steps).astype(np.float32),
        classes=CLASSES,
        preprocessing={"size": 4, "mean": [mean] * 3},
    )


def test_round_trip(tmp_path: Path) -> None:
    written = _distilled(1)
    write_distilled(tmp_path, written, {"seed": 7})
    found = read_distilled(tmp_path, classes=CLASSES)
    np.testing.assert_array_equal(found.images, written.images)
    np.testing.assert_array_equal(found.labels, written.labels)
    np.testing.assert_array_equal(found.step_sizes, written.step_sizes)
    assert (found.classes, found.preprocessing) == (CLASSES, written.preprocessing)
    card = read_json(tmp_path / "card.json")
    assert (card["seed"], card["steps"], card["images_per_step"], card["height"], card["width"]) == (7, 2, 2, 4, 5)


def test_a_parent_folder_joins_its_sets_in_order_of_names(tmp_path: Path) -> None:
    ours, theirs = _distilled(1), _distilled(2, steps=3)
    write_distilled(tmp_path / "pool", theirs, {})
    write_distilled(tmp_path / "anchor", ours, {})
    found = read_distilled(tmp_path)
    np.testing.assert_array_equal(found.images, np.concatenate([ours.images, theirs.images]))
    np.testing.assert_array_equal(found.step_sizes, np.concatenate([ours.step_sizes, theirs.step_sizes]))
    images, labels = found.flat()
    assert images.shape == (10, 3, 4, 5)
    np.testing.assert_array_equal(images[4], theirs.images[0, 0])
    assert labels.tolist() == [0, 1] * 5


@pytest.mark.parametrize(
    ("other", "word"), [(_distilled(2, mean=0.4), "preprocessing"), (_distilled(2, count=4), "images per step")]
)
def test_sets_that_do_not_fit_together_are_refused(tmp_path: Path, other: DistilledSet, word: str) -> None:
    write_distilled(tmp_path / "a", _distilled(1), {})
    write_distilled(tmp_path / "b", other, {})
    with pytest.raises(DataError, match=word):
        read_distilled(tmp_path)


def test_another_order_of_classes_is_refused(tmp_path: Path) -> None:
    write_distilled(tmp_path, _distilled(1), {})
    with pytest.raises(DataError, match=r"expected \['happiness', 'anger'\]"):
        read_distilled(tmp_path, classes=("happiness", "anger"))


def test_an_image_that_is_not_finite_is_never_written(tmp_path: Path) -> None:
    broken = _distilled(1)
    broken.images[0, 0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        write_distilled(tmp_path, broken, {})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    write_distilled(tmp_path, _distilled(1), {})
    path = tmp_path / "distilled.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        read_distilled(tmp_path)


def test_an_empty_folder_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dvc repro distill"):
        read_distilled(tmp_path)


def test_saved_epochs_come_back_by_number(tmp_path: Path) -> None:
    for epoch in (100, 20, 9):
        write_arrays(tmp_path / "saved" / saved_name(epoch), {"images": np.full((1, 2, 3, 4, 5), epoch, np.float32)})
    saved = read_saved(tmp_path)
    assert list(saved) == [9, 20, 100]
    assert saved[20].max() == 20


def test_a_card_of_another_kind_is_one_line(tmp_path: Path) -> None:
    write_distilled(tmp_path, _distilled(1), {})
    path = tmp_path / "card.json"
    card = read_json(path)
    for change, told in (
        ({"classes": None}, "classes: Input should be a valid list"),
        ({"classes": []}, "classes: List should have at least 1 item"),
        ({"classes": ["../a", "b"]}, "classes.0: String should match pattern"),
        ({"preprocessing": 0.5}, "preprocessing: Input should be a valid dictionary"),
        ({"steps": True}, "steps: Input should be a valid integer"),
        ({"height": 3.7}, "height: Input should be a valid integer"),
        ({"width": -1}, "width: Input should be greater than 0"),
        ({"steps": 2**40}, "does not fit its card.json"),
        ({"classes": ["a"]}, "does not fit its card.json"),
    ):
        path.write_text(json.dumps({**card, **change}))
        with pytest.raises(DataError, match=re.escape(told)) as raised:
            read_distilled(tmp_path)
        assert str(raised.value).isprintable()
    for missing in ("classes", "preprocessing", "steps"):
        path.write_text(json.dumps({name: value for name, value in card.items() if name != missing}))
        with pytest.raises(DataError, match=f"the key '{missing}' is missing"):
            read_distilled(tmp_path)
    path.write_text("[1]")
    with pytest.raises(DataError, match="is no card of a distilled set"):
        read_distilled(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"labels": None}, "it lacks labels"),
        ({"labels": np.zeros((2, 2), np.int32)}, "labels is I32 [2, 2], expected I64 [steps images_per_step]"),
        ({"labels": np.zeros((3, 2), np.int64)}, "labels is I64 [3, 2], expected"),
        ({"images": np.zeros((2, 2, 4, 4, 5), np.float32)}, "images is F32 [2, 2, 4, 4, 5], expected F32 [steps "),
        ({"images": np.zeros((2, 2), np.float32)}, "images is F32 [2, 2], expected"),
        ({"step_sizes": np.full(2, np.nan, np.float32)}, "holds step_sizes that are not finite"),
        ({"labels": np.full((2, 2), 2**40)}, "does not fit its card.json"),
        ({"labels": np.full((2, 2), -1)}, "does not fit its card.json"),
    ],
)
def test_arrays_of_another_form_are_one_line(tmp_path: Path, arrays: dict[str, np.ndarray | None], told: str) -> None:
    right = _distilled(1)
    write_distilled(tmp_path, right, {})
    all_arrays = {name: getattr(right, name) for name in ("images", "labels", "step_sizes")} | arrays
    write_arrays(tmp_path / "distilled.safetensors", {name: one for name, one in all_arrays.items() if one is not None})
    with pytest.raises(DataError, match=re.escape(told)):
        read_distilled(tmp_path)


def test_controls_are_read_or_told(tmp_path: Path) -> None:
    assert read_controls(tmp_path).reason == "nothing was compared with controls"
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    common = {"start": "fresh", "training": "plain", "draws": 2, "accuracy": 0.5, "mean_class_accuracy": estimate}
    trained = [{**common, "images": images} for images in ("distilled", "noise")]
    gain = {"start": "fresh", "against": "noise", "mean": 0.1, "low": 0.01, "high": 0.2}
    content = {"reason": "", "heldout_images": 9, "trainings": trained, "differences": [gain]}
    path = tmp_path / "controls.json"
    path.write_text(json.dumps(content))
    assert read_controls(tmp_path).unbeaten("fresh") == []
    assert read_controls(tmp_path).sentence("fresh").endswith("(noise 50.0%): they beat their controls")
    for low in (0.0, -0.1, None):  # an interval that touches zero, or none, decides nothing
        path.write_text(json.dumps({**content, "differences": [{**gain, "low": low}]}))
        assert [row.against for row in read_controls(tmp_path).unbeaten("fresh")] == ["noise"]
    for change in ({"trainings": []}, {"trainings": trained[:1]}, {"differences": []}, {"differences": [{"mean": 2}]}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match="is no comparison with controls"):
            read_controls(tmp_path)


def test_a_probe_is_read_or_told(tmp_path: Path) -> None:
    assert read_probe(tmp_path).reason == "no probe was run"
    curve = [{"epoch": epoch, "train": 1.0, "test": 0.5} for epoch in (1, 2)]
    content = {"reason": "", "chance": 0.5, "moments": [1], "saved_image": [curve, curve], "unseen_image": []}
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(content))
    assert [[row.test for row in run] for run in read_probe(tmp_path).saved_image] == [[0.5, 0.5]] * 2
    for change in ({"saved_image": [[]]}, {"saved_image": [curve, curve[:1]]}, {"chance": 7}, {"saved_image": [[1]]}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(DataError, match="is no probe of a distilled set"):
            read_probe(tmp_path)
