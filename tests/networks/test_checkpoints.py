"""A checkpoint is the network that was saved, with the same bytes for the same network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.networks import checkpoints
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings

CLASSES = ("anger", "happiness", "neutral")
NETWORK = NetworkSettings(size=24, width=8, feature_dim=12, dropout=0.5)


@pytest.fixture
def saved(tmp_path: Path):
    model = build(NETWORK, 3, seed=4)
    with torch.no_grad():  # running statistics and head that a fresh network does not have
        model(torch.randn(16, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    card = Card(network=NETWORK, classes=CLASSES, preprocessing=Preprocessing(size=24), training={"steps": 3})
    save_checkpoint(tmp_path / "model", model, card)
    return tmp_path / "model", model.eval(), card


@pytest.fixture
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def test_three_lines_load_a_trained_model(saved, faces) -> None:
    folder, model, _ = saved
    classifier = load_checkpoint(str(folder))
    probabilities = classifier.predict(faces)
    with torch.no_grad():
        inputs = Preprocessing(size=24).apply(faces)
        np.testing.assert_allclose(probabilities, model(inputs).softmax(1).numpy(), atol=1e-5)
        np.testing.assert_allclose(classifier.features(faces), model.features(inputs).numpy(), atol=1e-5)
    assert probabilities.shape == (7, 3)
    assert classifier.classes == CLASSES


def test_batches_do_not_change_the_answer(saved, faces) -> None:
    classifier = load_checkpoint(saved[0])
    whole = classifier.predict(faces)
    classifier.batch_size = 2
    np.testing.assert_allclose(classifier.predict(faces), whole, atol=1e-6)
    assert classifier.predict(faces[:0]).shape == (0, 3)
    assert classifier.features(faces[:0]).shape == (0, 12)


def test_the_card_comes_back_and_the_bytes_are_the_same(saved, tmp_path: Path) -> None:
    folder, _, card = saved
    assert load_checkpoint(folder).card == card
    save_checkpoint(tmp_path / "again", load_checkpoint(folder).model, card)
    for name in ("weights.safetensors", "card.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_another_label_order_is_refused(saved) -> None:
    assert load_checkpoint(saved[0], classes=CLASSES).classes == CLASSES
    with pytest.raises(DataError, match="trained with the classes anger, happiness, neutral, expected neutral"):
        load_checkpoint(saved[0], classes=CLASSES[::-1])


def test_damage_is_one_line(saved, tmp_path: Path) -> None:
    folder = saved[0]
    with pytest.raises(DataError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "absent")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "version": 9}))
    with pytest.raises(DataError, match="version 9, expected 1"):
        load_checkpoint(folder)
    (folder / "card.json").write_text(json.dumps({**card, "classes": ["a", "b"]}))
    with pytest.raises(DataError, match=r"does not fit its card \([^\n]*\); train the model again$"):
        load_checkpoint(folder)
    (folder / "card.json").write_text(json.dumps(card))
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        load_checkpoint(folder)


def test_an_absent_device_is_refused(saved) -> None:
    with pytest.raises(Exception, match="cuda:99"):
        load_checkpoint(saved[0], device="cuda:99")


def test_a_card_takes_no_memory_for_what_its_weights_lack(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three numbers in a card may ask for more memory than any machine has; the shapes alone are compared first."""
    folder = saved[0]
    card = json.loads((folder / "card.json").read_text())
    built = []

    def build_and_note(*args: Any, **options: Any) -> Any:
        model = build(*args, **options)
        built.extend(parameter.device.type for parameter in model.parameters())
        return model

    monkeypatch.setattr(checkpoints, "build", build_and_note)
    for change, told in {
        "width": (512, r"does not fit its card \(backbone\.stem\.0\.weight has the shape \(8, 3, 3, 3\), expected "),
        "feature_dim": (16_384, r"does not fit its card \(neck\.0\.weight has the shape "),
        "norm": ("group", r"does not fit its card \(it has the unknown tensor backbone\.[\w.]+\)"),
    }.items():
        value, words = told
        (folder / "card.json").write_text(json.dumps({**card, "network": {**card["network"], change: value}}))
        with pytest.raises(DataError, match=words):
            load_checkpoint(folder)
    assert set(built) == {"meta"}
    (folder / "card.json").write_text(json.dumps(card))
    load_checkpoint(folder)
    assert set(built) == {"meta", "cpu"}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("network.width", 10**5, r"network\.width: Input should be less than or equal to 512, found 100000"),
        ("network.feature_dim", 10**8, r"network\.feature_dim: Input should be less than or equal to 16384"),
        ("network.size", 10**6, r"network\.size: Input should be less than or equal to 2048"),
        ("network.dropout", 1e308, r"network\.dropout: Input should be less than 1"),
        ("preprocessing.size", 2**40, r"preprocessing\.size: Input should be less than or equal to 2048"),
        ("preprocessing.std", [0.5, 0, 0.5], r"preprocessing\.std\.1: Input should be greater than 0"),
        ("preprocessing.mean", [0.5, 0.5], r"preprocessing\.mean\.2.*missing"),
        ("classes", [], r"classes: .* at least 1 item"),
        ("classes", ["anger", "../joy", "x"], r"classes\.1: String should match pattern"),
        ("classes", "anger", r"classes: Input should be a valid tuple"),
        ("training", [1], r"training: Input should be a valid dictionary"),
        ("preprocessing.mean", "x" * 10**6, r"preprocessing\.mean: Input should be a valid tuple, found 'x+\.\.\.x+'$"),
    ],
)
def test_every_number_of_a_card_is_bounded(saved, place: str, value: Any, told: str) -> None:
    path = saved[0] / "card.json"
    card = json.loads(path.read_text())
    *outer, name = place.split(".")
    (card[outer[0]] if outer else card)[name] = value
    path.write_text(json.dumps(card))
    with pytest.raises(ConfigError, match=told) as raised:
        load_checkpoint(saved[0])
    assert len(str(raised.value)) < 600
    path.write_text(json.dumps(card).replace(json.dumps(value), "[1, NaN, Infinity]"))
    with pytest.raises(DataError, match="NaN is no number of JSON"):
        load_checkpoint(saved[0])
