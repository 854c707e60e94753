"""The joined network gives what its members give alone, each from its own view of the crop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import build, family
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.settings import Card, NetworkSettings, preprocessing_of
from fer_pipeline.networks.weights import PIXELS, WeightSettings, check_members, initial_network

EXPRESSIONS = ("face_api_expressions", "fer_expressions", "human_expressions")
MAPS = {"layer4": 2, "layer2": 4}  # not in the network's order


def joined(*members: dict) -> NetworkSettings:
    return NetworkSettings.model_validate({"name": "joined", "size": 112, "members": members})


@pytest.mark.parametrize("names", [("dlib_face",), ("dlib_face", *EXPRESSIONS)])
def test_features_are_those_of_the_members_alone(
    names: tuple[str, ...], install: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        pretrained.locate("dlib_face")
    except DataError as error:
        pytest.skip(str(error))
    for name in names[1:]:
        monkeypatch.chdir(install(name).parents[3])
    faces = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    settings = joined(*({"name": name, "features": MAPS if name == "dlib_face" else None} for name in names))
    model, preprocessing, report = initial_network(settings, None, num_classes=5, seed=0)
    with torch.inference_mode():
        found = model.eval().features(preprocessing.apply(faces)).numpy()
        one = pretrained.find("dlib_face")
        maps = pretrained.load_network("dlib_face").feature_maps(one.preprocessing.apply(faces))
        parts = [functional.adaptive_avg_pool2d(maps[stage], MAPS[stage]).flatten(1) for stage in ("layer2", "layer4")]
    assert model.backbone.widths[:2] == (64 * 16, 256 * 4)
    opinions = [np.log(pretrained.read_expression_net(name).predict(faces)).clip(np.log(1e-6)) for name in names[1:]]
    np.testing.assert_allclose(found, np.concatenate([*parts, *opinions], 1), rtol=1e-4, atol=1e-4)
    assert report is not None
    assert list(report.origin) == list(names)
    assert all(pretrained.find(name).sha256 in line for name, line in report.origin.items())


def test_a_checkpoint_needs_no_file_of_its_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = joined({"name": "dlib_face"}, {"name": "fer_expressions"})
    model = build(settings, 5, seed=1).eval()
    monkeypatch.setattr(pretrained, "locate", lambda *_: pytest.fail("a file was looked for"))
    card = Card(network=settings, classes=tuple("abcde"), preprocessing=preprocessing_of(settings, PIXELS))
    save_checkpoint(tmp_path, model, card)
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), np.uint8)
    with torch.inference_mode():
        expected = model(card.preprocessing.apply(faces)).softmax(1).numpy()
    np.testing.assert_allclose(load_checkpoint(tmp_path).predict(faces), expected, rtol=1e-4)
    assert model.feature_dim == 256 + 7


@pytest.mark.parametrize(
    ("settings", "weights", "words"),
    [
        (joined(), None, "name them in network.members"),
        (joined({"name": "nobody"}), None, "no weights are registered as 'nobody'"),
        (joined({"name": "progressive_teacher", "features": {"a": 1}}), None, "has no stages; leave its features out"),
        (joined({"name": "fer_expressions", "features": {"layer1": 1}}), None, "has no stages; leave its features out"),
        (joined({"name": "dlib_face", "features": {"layer9": 1}}), None, "has no stage 'layer9'; there are stem"),
        (joined({"name": "dlib_face", "features": {"layer5": 3}}), None, "larger than the map of layer5"),
        (joined({"name": "fer_expressions"}), WeightSettings(name="dlib_face"), "leave weights and normalisation out"),
        (NetworkSettings.model_validate({"members": [{"name": "dlib_face"}]}), None, "of the network joined alone"),
        (joined({"name": "fer_expressions"}), "target", "was trained on fer2013, which the target 'theirs' is"),
    ],
)
def test_what_cannot_be_joined_is_one_line(settings: NetworkSettings, weights, words: str) -> None:
    targets = {"theirs": {"theirs", "fer2013"}} if weights == "target" else {}
    with pytest.raises(ConfigError, match=words):
        check_members(settings, None if weights == "target" else weights, targets)
    assert family("joined").layouts(settings) == {}
