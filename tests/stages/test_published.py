"""A published network as it comes: one model of no seed, which predicts what the network alone predicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_pipeline.artifacts.faces import read_faces
from fer_pipeline.artifacts.metrics import read_predictions
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import DatasetSettings, ProjectSettings, Summary, validate
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.pretrained import read_expression_net, read_onnx_net
from fer_pipeline.networks.settings import read_card
from fer_pipeline.stages import evaluate, train_final
from tests.networks.test_expression_nets import write_onnx
from tests.project import project_settings, recipe_settings

CLASSES = ("anger", "happiness", "neutral")  # of the walk: another order than the network's, and not all of them
OUTPUTS = ("neutral", "sad", "Angry", "Happy")
WEIGHT = 100 * np.array([[-1, 0.6, 1, 0], [0, 0.1, -1, 1], [1, -0.7, 0, -1]], np.float32)  # differences of colours
LOWER = {"side": 16, "matrix": [[0.2, 0, -2], [0, 0.2, -4]]}  # another part of the crop than all of it


@pytest.fixture
def member(tmp_path: Path) -> dict[str, Any]:
    settings = write_onnx(tmp_path / "n.onnx", WEIGHT, classes=OUTPUTS, preprocessing={"size": 16, "template": LOWER})
    return {"onnx": settings.model_dump(mode="json")}


Trained = tuple[Summary, Path, ProjectSettings]


@pytest.fixture
def train(tmp_path: Path, band_faces) -> Callable[..., Trained]:
    def call(
        member: dict[str, Any], *, strategy: str = "published", classes: tuple[str, ...] = CLASSES, **overrides: Any
    ) -> Trained:
        sources = {"labelled": band_faces(tmp_path / "faces" / "train")}
        network = {"name": "joined", "members": [member]} | overrides.pop("network", {})
        recipe = recipe_settings(sources, strategy=strategy, overrides={"network": network, **overrides})
        target = DatasetSettings(adapter="fer2013", path=Path("raw/theirs"))
        project = project_settings(
            classes=classes, seeds=(5, 6, 7), recipes={"peer": recipe}, targets=("t",), datasets={"t": target}
        )
        config = validate(train_final.Config, {"training": {"select": "last"}, "validation": 0}, where="train_final")
        train_final.check_recipes(config, project)
        places = {"out": tmp_path / "final", "timings": tmp_path / "timings.json", "store": tmp_path / "store"}
        return train_final.run(config, project, recipe="peer", sources=sources, **places), tmp_path / "final", project

    return call


def test_it_is_one_model_that_predicts_what_the_network_alone_does(
    train, member: dict[str, Any], tmp_path: Path, band_faces
) -> None:
    """Its own template, its own order of classes; the share of the class that is not asked for is the others'."""
    summary, models, project = train(member)
    assert "peer: a network as it comes, nothing trained" in summary.line
    assert not any("fair" in line for line in summary.warnings)
    assert [path.name for path in models.iterdir()] == ["5"]
    faces = read_faces(tmp_path / "faces" / "train")
    settings = read_card(models / "5").network.members[0].onnx
    assert settings is not None
    net = read_onnx_net(settings)
    full = net.predict(faces.images)[:, [2, 3, 0]]
    expected = full / full.sum(1, keepdims=True)
    assert np.abs(full - expected).max() > 0.1  # the class left out had a share
    np.testing.assert_allclose(load_checkpoint(models / "5").predict(faces.images), expected, atol=1e-5)
    found = read_card(models / "5").training["found"]
    recalls = [(expected.argmax(1) == k)[faces.labels == k].mean() for k in range(3)]
    assert found["labelled_mean_class_accuracy"] == pytest.approx(np.mean(recalls))
    assert summary.counts["labelled_mean_class_accuracy"] == pytest.approx(np.mean(recalls))

    test = band_faces(tmp_path / "test", split="test", seed=1)
    measured = evaluate.run(
        evaluate.Config(recipes=("peer",)), project, recipe="peer", target="t", models=models, faces=test,
        out=tmp_path / "metrics",
    )  # fmt: skip
    rows = read_predictions(tmp_path / "metrics" / "predictions.parquet")
    assert (rows.trained, rows.seeds, rows.seen) == (False, (5,), "")
    asked = net.predict_as(read_faces(test).images, CLASSES)
    np.testing.assert_allclose(rows.probabilities[0], asked, atol=1e-5)
    assert measured.line.endswith("faces, nothing trained)")


def test_a_share_below_the_floor_of_joined_features_still_decides(
    train, member: dict[str, Any], tmp_path: Path
) -> None:
    """All but the class that is not asked for have less than a millionth: the largest of these is the answer."""
    steep = np.array(WEIGHT)
    steep[:, 1] = -60  # of colours that are below the middle
    settings = write_onnx(tmp_path / "n.onnx", steep, classes=OUTPUTS)
    _, models, _ = train({"onnx": settings.model_dump(mode="json")})
    net, images = read_onnx_net(settings), read_faces(tmp_path / "faces" / "train").images
    assert net.predict(images)[:, [2, 3, 0]].max() < 1e-6
    scores = net.network(net.preprocessing.apply(images)).numpy()[:, [2, 3, 0]]
    predicted = load_checkpoint(models / "5").predict(images).argmax(1)
    assert len(set(predicted)) == 3
    assert (predicted == scores.argmax(1)).all()


def test_a_head_on_its_opinions_is_solved_for_once_for_all_seeds(train, member: dict[str, Any], tmp_path: Path) -> None:
    """The seed draws nothing in it: whichever seed solves for it ends with the same bytes."""
    summary, models, project = train(member, strategy="linear")
    assert "peer: 3 models (1 trained, 0 from the store, 2 equal to another seed's)" in summary.line
    weights = [(models / seed / "weights.safetensors").read_bytes() for seed in ("5", "6", "7")]
    assert weights[0] == weights[1] == weights[2]
    assert read_card(models / "7").network.floor == 1e-6
    assert read_card(models / "7").training["seed"] is None
    config = validate(train_final.Config, {"training": {"select": "last"}, "validation": 0}, where="train_final")
    other = project.model_copy(update={"seeds": (9,)})
    sources = {"labelled": tmp_path / "faces" / "train"}
    places = {"out": tmp_path / "other", "timings": tmp_path / "timings.json", "store": tmp_path / "other-store"}
    train_final.run(config, other, recipe="peer", sources=sources, **places)
    assert (tmp_path / "other" / "9" / "weights.safetensors").read_bytes() == weights[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"network": {"members": []}},
            r"recipes\.peer \(published\): the strategy published takes one expression network",
        ),
        ({"network": {"members": [{"name": "dlib_face"}]}}, "found dlib_face; set network"),
        ({"network": {"grey": True}}, "network.grey has no effect with the strategy published; take it out"),
        ({"network": {"floor": 0.1}}, "network.floor has no effect with the strategy published; take it out"),
        ({"training": {"batch": 8}}, "training.batch has no effect"),
        ({"classes": ("anger", "contempt", "neutral")}, r"\(published\): .*n\.onnx does not know the class 'contempt'"),
    ],
)
def test_what_does_not_fit_is_one_line(train, member: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        train(member, **changes)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_gone_is_one_line(train, member: dict[str, Any], tmp_path: Path) -> None:
    _, models, _ = train(member)
    (tmp_path / "n.onnx").unlink()
    with pytest.raises(DataError, match=r"the network .*n\.onnx does not exist; correct the path"):
        load_checkpoint(models / "5").predict(np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(DataError, match=r"n\.onnx does not exist"):
        train(member | {"onnx": member["onnx"] | {"outputs": "probabilities"}})


def test_what_a_target_was_to_a_registered_network_is_said(
    train,
    install: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    band_faces,
) -> None:
    """Its publisher trained it on FER2013: the row stays, since that is what others would pick, and says so."""
    monkeypatch.chdir(install("fer_expressions").parents[3])
    _, models, project = train({"name": "fer_expressions"})
    test = band_faces(tmp_path / "test", split="test", seed=1)
    places = {"models": models, "faces": test, "out": tmp_path / "metrics"}
    summary = evaluate.run(evaluate.Config(recipes=("peer",)), project, recipe="peer", target="t", **places)
    rows = read_predictions(tmp_path / "metrics" / "predictions.parquet")
    assert rows.seen == "fer_expressions was trained on fer2013"
    assert any("fer_expressions was trained on fer2013, which t is" in line for line in summary.warnings)
    expected = read_expression_net("fer_expressions").predict_as(read_faces(test).images, CLASSES)
    np.testing.assert_allclose(rows.probabilities[0], expected, atol=1e-5)
    monkeypatch.setattr(pretrained, "locate", lambda *_: pytest.fail("a file was looked for"))
    load_checkpoint(models / "5")
