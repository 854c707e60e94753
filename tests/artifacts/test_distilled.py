"""What is written comes back, several sets join in order of their names, and what does not fit is refused."""

from pathlib import Path

import numpy as np
import pytest

from fer_pipeline.artifacts.distilled import (
    DistilledSet,
    read_distilled,
    read_saved,
    saved_name,
    write_arrays,
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
