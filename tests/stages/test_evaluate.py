"""The stage evaluate on faces whose pixels say what a stand-in model will answer, so that every figure is known."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from fer_pipeline.artifacts.faces import decode_one, encode, face_schema, read_faces, write_shard
from fer_pipeline.artifacts.metrics import read_predictions
from fer_pipeline.core.errors import DataError
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import Classifier, load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.stages import evaluate
from tests.project import project_settings

CLASSES = ("anger", "fear", "happiness")
# (label or None, what seed 0 answers, what seed 1 answers, how sure)
CASES = [
    ("anger", "anger", "anger", 0.9),
    ("anger", "happiness", "happiness", 0.8),
    ("anger", "happiness", "happiness", 0.95),
    ("anger", "happiness", "anger", 0.6),
    ("happiness", "happiness", "happiness", 0.7),
    ("happiness", "fear", "happiness", 0.55),
    (None, "fear", "fear", 0.5),
]


class StandIn:
    """Answers what the first pixel's channels say: red for seed 0, green for seed 1, blue for how sure."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def predict(self, images: np.ndarray) -> np.ndarray:
        pixel = images[:, 0, 0].astype(float)
        sure = pixel[:, 2] / 200
        shares = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
        shares[np.arange(len(images)), pixel[:, self.seed].astype(int)] = sure
        return shares.astype(np.float32)


def write_faces(folder: Path, *, classes: tuple[str, ...] = CLASSES, prefix: str = "t") -> None:
    rows = []
    for index, (label, first, second, sure) in enumerate(CASES):
        image = np.zeros((8, 8, 3), np.uint8)
        image[:] = CLASSES.index(first), CLASSES.index(second), round(sure * 200)
        rows.append(
            {
                "face_id": f"{prefix}/{index}",
                "image": {"bytes": encode(image, format="png"), "path": None},
                "label": None if label is None else classes.index(label),
                "subject": None,
                "split": "test",
                "landmarks": [0.0] * 10,
                "score": 1.0,
                "source": "",
            }
        )
    schema = face_schema(classes, crop=8)
    write_shard(folder / "part-00000.parquet", pa.Table.from_pylist(rows[:4], schema=schema))
    write_shard(folder / "part-00001.parquet", pa.Table.from_pylist(rows[4:], schema=schema))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    network, preprocessing = NetworkSettings(size=8), Preprocessing(size=8)
    card = Card(network=network, classes=CLASSES, preprocessing=preprocessing)
    monkeypatch.setattr(evaluate, "read_card", lambda folder: card)
    monkeypatch.setattr(evaluate, "load_checkpoint", lambda folder, **_: StandIn(int(folder.name)))
    monkeypatch.setattr(evaluate, "predictor_parts", lambda folder: folder.name)


def measure(tmp_path: Path, *, out: str = "out", seeds: tuple[int, ...] = (0, 1), **settings: int) -> evaluate.Summary:
    return evaluate.run(
        evaluate.Config(recipes=("vas",), **settings),
        project_settings(classes=CLASSES, seeds=seeds),
        recipe="vas",
        target="t",
        models=tmp_path / "models",
        faces=tmp_path / "faces" / "test",
        out=tmp_path / out,
    )


@pytest.mark.usefixtures("stand_in")
def test_figures_by_hand(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces" / "test")
    summary = measure(tmp_path, batch_size=2)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # Seed 0: anger 1/4, happiness 1/2, 2 of 6. Seed 1: anger 2/4, happiness 2/2, 4 of 6. Fear has no face.
    assert found["accuracy"] == pytest.approx((2 / 6 + 4 / 6) / 2)
    assert found["mean_class_accuracy"] == pytest.approx((0.375 + 0.75) / 2)
    assert found["class_accuracy_sd"] == pytest.approx((0.125 + 0.25) / 2)
    assert found["per_seed"]["0"]["mean_class_accuracy"] == pytest.approx(0.375)
    assert found["per_class"]["anger"]["accuracy"] == pytest.approx(0.375)
    assert found["support"] == {"anger": 4, "fear": 0, "happiness": 2}
    assert found["absent_classes"] == "fear"
    assert "fear" not in found["per_class"]
    assert found["bootstrap_units"] == "faces within classes"
    assert summary.counts["samples"] == 6
    assert any("no fear" in warning for warning in summary.warnings)
    assert any("1 faces of t have no label" in warning for warning in summary.warnings)


@pytest.mark.usefixtures("stand_in")
def test_predictions_and_confusion_rows_agree_with_the_cases(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces" / "test")
    measure(tmp_path)
    predictions = read_predictions(tmp_path / "out" / "predictions.parquet")
    labelled = [case for case in CASES if case[0]]
    assert [CLASSES[k] for k in predictions.labels] == [case[0] for case in labelled]
    assert [CLASSES[k] for k in predictions.predicted[1]] == [case[2] for case in labelled]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "confusion.csv").read_text())))
    assert Counter((row["actual"], row["predicted"], row["seed"]) for row in rows) == Counter(
        [(case[0], case[1], "0") for case in labelled] + [(case[0], case[2], "1") for case in labelled]
    )


@pytest.mark.usefixtures("stand_in")
def test_failures_are_the_surest_mistakes_of_the_mean(tmp_path: Path) -> None:
    """Case 2 (0.95) goes before case 1 (0.8). Cases 3 and 5 tie: the first class is right, then wrong."""
    write_faces(tmp_path / "faces" / "test")
    measure(tmp_path, failures_per_class=2)
    folder = tmp_path / "out" / "failures"
    listed = json.loads((folder / "failures.json").read_text())
    assert [(one["face_id"], one["predicted"], one["rank"]) for one in listed] == [
        ("t/2", "happiness", 1),
        ("t/1", "happiness", 2),
        ("t/5", "fear", 1),
    ]
    assert sorted(path.name for path in folder.glob("*.png")) == [
        "anger-01-as-happiness.png",
        "anger-02-as-happiness.png",
        "happiness-01-as-fear.png",
    ]
    picture = decode_one((folder / "anger-01-as-happiness.png").read_bytes())
    assert picture[0, 0].tolist() == [2, 2, 190]


@pytest.mark.usefixtures("stand_in")
def test_same_inputs_same_bytes_and_settings_matter(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces" / "test")
    for name, settings in {
        "a": {},
        "b": {"batch_size": 3},
        "c": {"bootstrap": 300},
        "d": {"bootstrap_seed": 1},
    }.items():
        measure(tmp_path, out=name, **settings)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    texts = {(tmp_path / name / "metrics.json").read_text() for name in "acd"}
    assert len(texts) == 3


@pytest.mark.usefixtures("stand_in")
def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces" / "test", classes=("happiness", "anger"))
    measure(tmp_path)
    predictions = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert [CLASSES[k] for k in predictions.labels] == [case[0] for case in CASES if case[0]]


@pytest.mark.usefixtures("stand_in")
def test_bad_inputs_say_the_cure_and_leave_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text("old")
    with pytest.raises(DataError, match="has no test split, it has none; give the target a test split"):
        measure(tmp_path)
    write_faces(tmp_path / "faces" / "train")
    with pytest.raises(DataError, match="it has train"):
        measure(tmp_path)
    write_faces(tmp_path / "faces" / "test", classes=("anger", "contempt", "happiness", "anger "))
    measure(tmp_path, out="fine")  # an unused foreign class is no fault
    assert (tmp_path / "out" / "metrics.json").read_text() == "old"


@pytest.mark.usefixtures("stand_in")
def test_foreign_labels_and_nan_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "predict", lambda self, images: np.full((len(images), 3), np.nan, np.float32))
    write_faces(tmp_path / "faces" / "test")
    with pytest.raises(DataError, match="no number for 6 of 6 faces"):
        measure(tmp_path)
    write_faces(tmp_path / "faces" / "test", classes=("contempt", "anger", "happiness"))
    monkeypatch.setitem(globals(), "CASES", [("contempt", "fear", "fear", 0.5), *CASES[:5]])
    write_faces(tmp_path / "faces" / "test", classes=("contempt", "anger", "happiness"))
    with pytest.raises(DataError, match="labels outside the classes: contempt"):
        measure(tmp_path)


def test_a_real_checkpoint_is_asked_and_its_label_order_checked(tmp_path: Path) -> None:
    write_faces(tmp_path / "faces" / "test")
    network = NetworkSettings(size=8, width=4)
    for seed in (0, 1):
        card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=8))
        save_checkpoint(tmp_path / "models" / str(seed), build(network, len(CLASSES), seed=seed), card)
    measure(tmp_path)
    found = read_predictions(tmp_path / "out" / "predictions.parquet")
    faces = read_faces(tmp_path / "faces" / "test")
    for row, seed in enumerate((0, 1)):
        expected = load_checkpoint(tmp_path / "models" / str(seed)).predict(faces.images)[faces.labels >= 0]
        np.testing.assert_allclose(found.probabilities[row], expected, atol=1e-6)
    card = Card(network=network, classes=CLASSES[::-1], preprocessing=Preprocessing(size=8))
    save_checkpoint(tmp_path / "models" / "1", build(network, len(CLASSES), seed=1), card)
    with pytest.raises(DataError, match="was trained with the classes happiness, fear, anger"):
        measure(tmp_path)


def test_equal_models_of_several_seeds_predict_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of a copy is that of its model; the same weights behind another preprocessing are another model."""
    write_faces(tmp_path / "faces" / "test")
    network, seeds, asked = NetworkSettings(size=8, width=4), (0, 1, 2), []
    for seed, mean in zip(seeds, (0.5, 0.5, 0.1), strict=True):
        prepared = Preprocessing(size=8, mean=(mean, mean, mean))
        card = Card(network=network, classes=CLASSES, preprocessing=prepared, training={"seed": seed})
        save_checkpoint(tmp_path / "models" / str(seed), build(network, len(CLASSES), seed=0), card)
    predict = Classifier.predict

    def spy(self: Classifier, images: np.ndarray) -> np.ndarray:
        asked.append(self.card.training["seed"])
        return predict(self, images)

    monkeypatch.setattr(Classifier, "predict", spy)
    measure(tmp_path, seeds=seeds)
    assert set(asked) == {0, 2}
    found = read_predictions(tmp_path / "out" / "predictions.parquet").probabilities
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])
