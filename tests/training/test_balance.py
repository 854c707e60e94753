"""A data set with equally many images of each class: counts by hand, a draw for each seed, one line for faults."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.seeds import derive
from fer_pipeline.core.settings import validate
from fer_pipeline.networks.settings import read_card
from fer_pipeline.training.sets import balanced_rows, read_images
from fer_pipeline.training.settings import TrainingSettings
from tests.toy_world import CLASSES

LABELS = np.array([0] * 9 + [1] * 4 + [3] * 30)


@pytest.mark.parametrize(("per_class", "expected"), [(None, 4), (3, 3), (4, 4)])
def test_every_class_has_as_many_and_the_order_stays(per_class: int | None, expected: int) -> None:
    rows = balanced_rows(LABELS, per_class=per_class, seed=1, where="labelled")
    assert np.bincount(LABELS[rows]).tolist() == [expected, expected, 0, expected]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == balanced_rows(LABELS, per_class=per_class, seed=1, where="labelled").tolist()
    drawn = np.concatenate([balanced_rows(LABELS, per_class=per_class, seed=seed, where="") for seed in range(60)])
    assert set(drawn) == set(range(len(LABELS))), "some images are never drawn"


def test_more_than_the_rarest_class_has_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^training.balance_per_class: 5 images .* labelled has 4 of its rarest; [^\n]+$"
    ):
        balanced_rows(LABELS, per_class=5, seed=1, where="labelled")


def test_a_size_without_its_balance_is_refused_and_a_card_without_one_has_no_word_of_it() -> None:
    with pytest.raises(ConfigError, match=r"^training: [^\n]*balance_per_class is of balance: dataset, found none$"):
        validate(TrainingSettings, {"balance_per_class": 5}, where="training")
    assert "balance_per_class" not in TrainingSettings().model_dump()


def test_a_training_sees_the_balanced_set_alone_and_says_so(train_toy, toy) -> None:
    labelled = toy(60, 0)
    fewest = int(labelled.counts(len(CLASSES)).min())
    trained, folder = train_toy("run", sets={"labelled": labelled}, balance="dataset", balance_per_class=fewest - 1)
    assert trained.images == {"labelled": 3 * (fewest - 1)}
    (note,) = read_card(folder).training["notes"]
    assert note == (
        f"training.balance: dataset trains on {3 * (fewest - 1)} of 60 labelled faces, equally many of each class"
    )
    # The faces that were not drawn change nothing.
    rows = balanced_rows(
        labelled.labels.numpy(), per_class=fewest - 1, seed=derive(3, "balance", "labelled"), where="labelled"
    )
    pixels = labelled.all_pixels()
    pixels[torch.from_numpy(np.setdiff1d(np.arange(60), rows))] = 0
    other = labelled.with_pixels(pixels)
    again = train_toy("again", sets={"labelled": other}, balance="dataset", balance_per_class=fewest - 1)[1]
    name = "weights.safetensors"
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_truth_of_an_unlabelled_set_is_read_where_faces_have_one(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3)).astype(np.uint8)
    for folder, labels in (("some", [2, None, 0, None]), ("none", [None] * 4)):
        rows = [
            {"face_id": f"f/{n}", "image": {"bytes": faces.encode(image, format="png"), "path": None}, "label": label}
            | {"subject": "p", "split": "train", "landmarks": [0.5 * n] * 10, "score": 1.0, "source": ""}
            for n, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        table = pa.Table.from_pylist(rows, schema=faces.face_schema(CLASSES, crop=16))
        faces.write_shard(tmp_path / folder / "part-00000.parquet", table)
    some, none = (
        read_images(tmp_path / folder, classes=CLASSES, budget=None, label=None, landmarks=True)
        for folder in ("some", "none")
    )
    assert some.labels.tolist() == [-1] * 4
    assert some.truth is not None
    assert some.truth.tolist() == [2, -1, 0, -1]
    assert some.take(np.array([2, 1])).truth.tolist() == [0, -1]  # pyright: ignore
    assert none.truth is None
    assert read_images(tmp_path / "some", classes=CLASSES, budget=None).truth is None, "the labels are the truth"
