"""The weight files: other bytes than the published are refused before they are read; no array is lost."""

import importlib.metadata

import joblib
import numpy as np
import pytest

from fer_pipeline.alignment import networks
from fer_pipeline.alignment.networks import load_networks
from fer_pipeline.core.errors import DataError


@pytest.mark.parametrize("network", ["pnet", "rnet", "onet"])
def test_arrays_equal_those_of_joblib(network: networks.Network) -> None:
    file = next(file for file in importlib.metadata.files("mtcnn") or () if file.name == f"{network}.lz4")
    expected = joblib.load(file.locate())
    found = networks.read_weights(network)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_networks_carry_every_array() -> None:
    loaded = load_networks()
    for network in ("pnet", "rnet", "onet"):
        file = next(file for file in importlib.metadata.files("mtcnn") or () if file.name == f"{network}.lz4")
        expected = sum(float(np.abs(array).sum(dtype=np.float64)) for array in joblib.load(file.locate()))
        found = sum(float(parameter.double().abs().sum()) for parameter in getattr(loaded, network).parameters())
        assert found == pytest.approx(expected, rel=1e-12)


def test_other_bytes_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = networks.read_package_file("pnet")
    monkeypatch.setattr(networks, "read_package_file", lambda network: b"\x00" + data[1:])
    with pytest.raises(DataError, match=r"sha256 .* expected ea6b0c3e685ebee3"):
        networks.read_weights("pnet")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(DataError, match=r"pip install mtcnn==1\.0\.0"):
        networks.read_package_file("pnet")
