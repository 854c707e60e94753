"""Other engines find what torch finds; what is not installed is refused in one line."""

import importlib.util

import numpy as np
import pytest
import torch

from fer_pipeline.alignment.aligner import AlignmentSettings, alignment_fingerprint
from fer_pipeline.alignment.cascade import Detector
from fer_pipeline.alignment.networks import Engine, load_networks, resolve_engine
from fer_pipeline.core.errors import ConfigError


def installed(engine: str) -> bool:
    return all(importlib.util.find_spec(package) for package in (engine, "onnx"))


ENGINES = [
    pytest.param(engine, marks=pytest.mark.skipif(not installed(engine), reason=f"{engine} is not installed"))
    for engine in ("openvino", "onnxruntime")
]


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_equal_those_of_torch(engine: Engine) -> None:
    networks, plain = load_networks(engine), load_networks("torch")
    random = torch.Generator().manual_seed(3)
    for size in ((12, 12), (61, 84), (33, 26)):
        pixels = torch.rand((2, 3, *size), generator=random) * 2 - 1
        ours, theirs = (some.pnet.propose(pixels, threshold=0.01) for some in (networks, plain))
        # torch also gives cells that are a rounding error below.
        passed = theirs[1] > 0.01
        assert ours[0].tolist() == theirs[0][passed].tolist()
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            np.testing.assert_allclose(one, other[passed], atol=1e-5)
    for name, size in (("rnet", 24), ("onet", 48)):
        for count in (1, 5):
            crops = torch.rand((count, 3, size, size), generator=random) * 2 - 1
            found = zip(getattr(networks, name)(crops), getattr(plain, name)(crops), strict=True)
            for one, other in found:
                np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_faces_are_found(engine: Engine, portraits: list[np.ndarray], detector: Detector) -> None:
    images = [*portraits, portraits[0][20:300, :310], np.zeros((30, 40, 3), np.uint8), np.zeros((8, 200, 3), np.uint8)]
    other = Detector(engine=engine).detect(images)
    assert sum(map(bool, other)) >= len(portraits) - 1
    for ours, theirs in zip(detector.detect(images), other, strict=True):
        assert len(ours) == len(theirs)
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.box, two.box, atol=0.01)
            np.testing.assert_allclose(one.landmarks, two.landmarks, atol=0.01)
            assert one.score == pytest.approx(two.score, abs=1e-4)


@pytest.mark.parametrize("missing", ["openvino", "onnx"])
def test_a_missing_engine_is_one_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=rf"package {missing} is not installed; run: pip install -e '\.\[openv"):
        Detector(engine="openvino")
    assert resolve_engine("auto") == "torch"


def test_the_engine_is_part_of_what_a_crop_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    choices: list[Engine] = ["auto", "torch", "openvino", "onnxruntime"]
    found = [alignment_fingerprint(AlignmentSettings(engine=engine)) for engine in choices]
    assert found[0] == found[1]
    assert len(set(found)) == 3
