"""`predict` against `align` and `evaluate` on real photographs, and its rows, reasons and bytes."""

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fer_pipeline.alignment.warp import fit_similarity, scale_template, transform_points
from fer_pipeline.artifacts.faces import read_faces, read_metadata, read_table
from fer_pipeline.commands import predict
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.stages import align
from tests.project import project_settings

CLASSES = ("anger", "happiness", "neutral")
SIDE = 48
PEOPLE = 12
POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


def _model(folder: Path, faces: dict[str, Any] | None) -> Path:
    network = NetworkSettings(size=SIDE, width=8)
    training = {} if faces is None else {"faces": faces}
    card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=SIDE), training=training)
    model = build(network, len(CLASSES), seed=1)
    model.head.weight.data.mul_(20)  # an untrained network that has opinions
    save_checkpoint(folder, model, card)
    return folder


def _rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def _numbers(row: dict[str, Any]) -> np.ndarray:
    return np.array([row[f"p_{name}"] for name in CLASSES])


@pytest.fixture(scope="module")
def photographs(sample_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the sample portraits, in two folders."""
    folder = tmp_path_factory.mktemp("photographs")
    chosen = sorted((sample_faces / "lfw" / "images").glob("*.jpg"))[:PEOPLE]
    for number, path in enumerate(chosen):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / path.name)
    return folder


@pytest.fixture(scope="module")
def aligned(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same portraits through the stage `align`, with a border that is not the default."""
    root = tmp_path_factory.mktemp("aligned")
    photos = DatasetSettings(adapter="image_folder", path=photographs, split="test", options={"levels": []})
    align.run(
        align.Config(crop=SIDE, border="constant"),
        project_settings(classes=CLASSES, datasets={"people": photos}),
        name="people",
        out=root / "out",
        store=root / "store",
    )
    return root / "out" / "test"


@pytest.fixture(scope="module")
def predicted(photographs: Path, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("predicted")
    model = _model(root / "model", read_metadata(aligned))
    predict.run(photographs, model=model, out=root / "faces.parquet", device="cpu", batch=5)
    return root / "faces.parquet", model


def test_probabilities_are_those_of_the_aligned_faces(aligned: Path, predicted: tuple[Path, Path]) -> None:
    """What `evaluate` does: read the shards, classify. The face that `align` took is told by its score."""
    out, model = predicted
    faces = read_faces(aligned)
    expected = load_checkpoint(model).predict(faces.images)
    scores = read_table(aligned, ["score"]).column("score").to_pylist()
    rows = _rows(out)
    assert len(faces) == PEOPLE
    for face_id, score, numbers in zip(faces.face_id, scores, expected, strict=True):
        same = [row for row in rows if face_id == f"people/{row['image']}"]
        found = min(same, key=lambda row: abs(row["score"] - score))
        np.testing.assert_allclose(_numbers(found), numbers, atol=1e-4)
        assert found["predicted"] == CLASSES[int(numbers.argmax())]


def test_landmarks_lie_where_the_crop_says(aligned: Path, predicted: tuple[Path, Path]) -> None:
    """Warping the reported landmarks by the similarity to the template gives the landmarks of the shard."""
    table = read_table(aligned, ["face_id", "landmarks", "score"]).to_pylist()
    rows = _rows(predicted[0])
    for face in table:
        same = [row for row in rows if face["face_id"] == f"people/{row['image']}"]
        found = min(same, key=lambda row: abs(row["score"] - face["score"]))
        points = np.array([[found[f"{point}_x"], found[f"{point}_y"]] for point in POINTS])
        on_crop = transform_points(points, fit_similarity(points, scale_template(SIDE)))
        np.testing.assert_allclose(on_crop.ravel(), face["landmarks"], atol=0.01)
        assert found["x1"] < found["nose_x"] < found["x2"]
        assert found["y1"] < found["nose_y"] < found["y2"]


def test_csv_says_the_same(photographs: Path, predicted: tuple[Path, Path], tmp_path: Path) -> None:
    out, model = predicted
    predict.run(photographs, model=model, out=tmp_path / "faces.csv", device="cpu", batch=5)
    with (tmp_path / "faces.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    expected = _rows(out)
    assert len(rows) == len(expected)
    assert list(rows[0]) == pq.read_schema(out).names
    for row, truth in zip(rows, expected, strict=True):
        assert row["image"] == truth["image"]
        for name in ("x1", "score", "nose_y", "p_anger"):
            assert float(row[name]) == pytest.approx(truth[name], rel=1e-7)


def test_the_size_of_a_batch_changes_nothing_that_matters(
    photographs: Path, predicted: tuple[Path, Path], tmp_path: Path
) -> None:
    out, model = predicted
    predict.run(photographs, model=model, out=tmp_path / "faces.parquet", device="cpu", batch=1)
    one, five = _rows(tmp_path / "faces.parquet"), _rows(out)
    assert [(row["image"], row["face"]) for row in one] == [(row["image"], row["face"]) for row in five]
    np.testing.assert_allclose([_numbers(row) for row in one], [_numbers(row) for row in five], atol=0.02)


def test_the_same_pictures_give_the_same_bytes(photographs: Path, predicted: tuple[Path, Path], tmp_path: Path) -> None:
    out, model = predicted
    predict.run(photographs, model=model, out=tmp_path / "faces.parquet", device="cpu", batch=5)
    assert (tmp_path / "faces.parquet").read_bytes() == out.read_bytes()


def test_troublesome_pictures_are_rows_with_a_reason(
    sample_faces: Path, predicted: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = sample_faces / "bad"
    summary = predict.run(bad, model=predicted[1], out=tmp_path / "faces.parquet", device="cpu")
    rows = _rows(tmp_path / "faces.parquet")
    files = sorted(path.relative_to(bad).as_posix() for path in bad.rglob("*") if path.is_file())
    assert sorted({row["image"] for row in rows}) == files
    for row in rows:
        assert (row["reason"] is None) == (row["predicted"] is not None)
    by_stem = {Path(row["image"]).stem: row for row in rows}
    assert by_stem["empty"]["reason"] == "empty"
    two = [row for row in rows if "two_faces" in row["image"]]
    assert [row["face"] for row in two] == [0, 1]
    assert two[0]["score"] >= two[1]["score"]
    upright = next(row for row in rows if "exif_rotated" in row["image"])
    assert upright["left_eye_y"] < upright["mouth_left_y"]
    assert upright["left_eye_x"] < upright["right_eye_x"]
    assert summary.counts["faces"] == sum(row["reason"] is None for row in rows)
    lost = sum(count for name, count in summary.counts.items() if name.startswith("without_"))
    assert lost == sum(row["reason"] is not None for row in rows)


def test_a_rule_takes_one_face(sample_faces: Path, predicted: tuple[Path, Path], tmp_path: Path) -> None:
    two = next(path for path in (sample_faces / "bad").iterdir() if "two_faces" in path.name)
    predict.run(two, model=predicted[1], out=tmp_path / "all.parquet", device="cpu")
    predict.run(two, model=predicted[1], out=tmp_path / "one.parquet", device="cpu", faces="largest")
    every, one = _rows(tmp_path / "all.parquet"), _rows(tmp_path / "one.parquet")
    areas = [(row["x2"] - row["x1"]) * (row["y2"] - row["y1"]) for row in every]
    largest = every[int(np.argmax(areas))]
    assert [(row["face"], row["x1"], row["score"]) for row in one] == [
        (largest["face"], largest["x1"], largest["score"])
    ]
    np.testing.assert_allclose(_numbers(one[0]), _numbers(largest), atol=1e-5)
    predict.run(two, model=predicted[1], out=tmp_path / "none.parquet", device="cpu", faces="reject")
    assert [row["reason"] for row in _rows(tmp_path / "none.parquet")] == ["several_faces"]


def _crop_folder(folder: Path, count: int) -> np.ndarray:
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return images


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_aligned_crops_are_only_classified(tmp_path: Path, kind: str) -> None:
    images = _crop_folder(tmp_path / "crops", 3)
    model = _model(tmp_path / "model", {"crop": SIDE, "border": "reflect", "format": kind})
    predict.run(tmp_path / "crops", model=model, out=tmp_path / "faces.parquet", crops=True, device="cpu")
    rows = _rows(tmp_path / "faces.parquet")
    direct = load_checkpoint(model).predict(images)
    found = np.stack([_numbers(row) for row in rows])
    assert [(row["image"], row["face"], row["x1"]) for row in rows] == [(f"{n}.png", 0, None) for n in range(3)]
    if kind == "png":
        np.testing.assert_allclose(found, direct, atol=1e-6)
    else:  # the loss of the shards' encoding is there on purpose
        assert np.abs(found - direct).max() > 1e-5


def test_grey_training_faces_mean_grey_crops(photographs: Path, tmp_path: Path) -> None:
    """A grey picture and its coloured twin are one to a model that was trained on grey faces."""
    (tmp_path / "in").mkdir()
    picture = Image.open(next(photographs.rglob("*.jpg"))).convert("RGB")
    levels = np.asarray(picture).astype(int)
    levels[..., 0] = np.clip(levels[..., 0] + 40, 0, 255)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "in" / "red.png")
    about = {"crop": SIDE, "border": "reflect", "format": "png"}
    for name, grey in (("grey", True), ("colour", False)):
        model = _model(tmp_path / name, {**about, "grey": grey})
        predict.run(tmp_path / "in", model=model, out=tmp_path / f"{name}.parquet", device="cpu")
    grey, colour = _rows(tmp_path / "grey.parquet")[0], _rows(tmp_path / "colour.parquet")[0]
    assert grey["x1"] == colour["x1"]
    assert np.abs(_numbers(grey) - _numbers(colour)).max() > 1e-4


def test_a_card_that_says_nothing_is_a_warning(tmp_path: Path) -> None:
    _crop_folder(tmp_path / "crops", 1)
    summary = predict.run(
        tmp_path / "crops", model=_model(tmp_path / "model", None), out=tmp_path / "f.csv", crops=True, device="cpu"
    )
    assert len(summary.warnings) == 1
    assert "does not say how its faces were aligned" in summary.warnings[0]


def test_names_and_the_own_result_in_the_folder(tmp_path: Path) -> None:
    """Odd names come through, hidden files and the earlier result are no pictures, a pipe does not stop the run."""
    folder = tmp_path / "crops"
    _crop_folder(folder, 1)
    (folder / "0.png").rename(folder / 'Ünïcode 脸, "quoted".png')
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    os.mkfifo(folder / "pipe.png")
    out = folder / "faces.csv"
    model = _model(tmp_path / "model", {"crop": SIDE})
    for _ in range(2):
        summary = predict.run(folder, model=model, out=out, crops=True, device="cpu")
        with out.open(newline="", encoding="utf-8") as stream:
            rows = {row["image"]: row["reason"] for row in csv.DictReader(stream)}
        assert rows == {'Ünïcode 脸, "quoted".png': "", "pipe.png": "unreadable"}
        assert summary.warnings == (f"{folder}: 2 files left out: 1 .txt, 1 hidden",)
        assert summary.counts["left_out"] == 2


def test_all_pictures_of_a_folder_are_rows_however_they_are_named_or_linked(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "crops", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        _crop_folder(place, 1)
    (folder / "0.png").rename(folder / "without")
    for name in ("A.PNG", "b.Png", "._b.png", "Thumbs.db", "c.png.part"):
        shutil.copy(folder / "without", folder / name)
    (folder / "d.mp4").write_bytes(b"film")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "nowhere.png").symlink_to("nothing.png")
    summary = predict.run(
        folder, model=_model(tmp_path / "model", {"crop": SIDE}), out=tmp_path / "out.parquet", crops=True, device="cpu"
    )
    assert {row["image"]: row["reason"] for row in _rows(tmp_path / "out.parquet")} == {
        **dict.fromkeys(("A.PNG", "b.Png", "c.png.part", "without", "linked/0.png")),
        **dict.fromkeys(("itself.png", "nowhere.png"), "unreadable"),
    }
    assert summary.warnings == (f"{folder}: 4 files left out: 1 .mp4, 1 hidden, 1 link to a folder above, 1 system",)


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    model = _model(tmp_path / "model", {"crop": SIDE})
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.csv"):
        predict.run(tmp_path, model=model, out=tmp_path / "faces.xlsx", device="cpu")
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(DataError, match=r"link\.csv is a link to "):
        predict.run(tmp_path / "nowhere", model=tmp_path / "nothing", out=tmp_path / "link.csv", device="cpu")
    with pytest.raises(DataError, match="does not exist; name a picture or a folder"):
        predict.run(tmp_path / "nowhere", model=model, out=tmp_path / "faces.csv", device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        predict.run(tmp_path / "empty", model=model, out=tmp_path / "faces.csv", device="cpu")
    with pytest.raises(DataError, match=r"holds no picture \(2 files left out: 1 \.json, 1 \.safetensors\)"):
        predict.run(model, model=model, out=tmp_path / "faces.csv", device="cpu")
    _crop_folder(tmp_path / "crops", 1)
    with pytest.raises(DataError, match="no checkpoint"):
        predict.run(tmp_path / "crops", model=tmp_path / "nothing", out=tmp_path / "faces.csv", device="cpu")
    assert not (tmp_path / "faces.csv").exists()


def test_a_stopped_run_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _crop_folder(tmp_path / "crops", 2)
    model = _model(tmp_path / "model", {"crop": SIDE})
    out = tmp_path / "faces.parquet"
    predict.run(tmp_path / "crops", model=model, out=out, crops=True, device="cpu")
    before = out.read_bytes()

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "classify", stop)
    with pytest.raises(KeyboardInterrupt):
        predict.run(tmp_path / "crops", model=model, out=out, crops=True, device="cpu")
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "faces.parquet", "model"]
