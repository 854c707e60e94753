"""Versions that are known to break, and the files of packages that must be the known ones."""

from pathlib import Path

import pytest

from fer_pipeline.alignment import networks
from fer_pipeline.alignment.networks import read_package_file
from fer_pipeline.health import software
from fer_pipeline.health.software import CheckContext


@pytest.mark.parametrize(
    ("package", "version", "level"),
    [
        ("torch", "2.11.0", "ok"),
        ("torch", "2.15.0+cu130", "ok"),
        ("torch", "2.10.1", "problem"),
        ("torch", None, "problem"),
        ("dvc", "3.60.0", "ok"),
        ("dvc", "3.59.2", "problem"),
        ("dvc", "4.0.0", "problem"),
        ("prefect", "3.8.8", "ok"),
        ("prefect", "3.8.7", "problem"),
        ("prefect", "3.9.0", "problem"),
        ("prefect", None, "ok"),
        ("fastapi", "0.139.2", "ok"),
        ("fastapi", "0.154.0", "problem"),
        ("fastapi", "0.155.1", "problem"),
        ("sqlalchemy", "2.0.58", "ok"),
        ("sqlalchemy", "2.1.0", "problem"),
        ("sqlalchemy", "2.1.0b1", "problem"),
    ],
)
def test_versions(
    tmp_path: Path, package: str, version: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "installed_version", lambda _: version)
    finding = software.compare_version(package, CheckContext(tmp_path))
    assert finding.level == level
    assert finding.advice.startswith("pip install '") == (level == "problem")


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.check_python(CheckContext(tmp_path)).level == "ok"
    monkeypatch.setattr(software.sys, "version_info", (3, 10, 4))
    assert software.check_python(CheckContext(tmp_path)).level == "problem"


def test_torchvision_must_have_its_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = "operator torchvision::nms does not exist"
    monkeypatch.setattr(software, "call_operator", lambda: error)
    finding = software.check_torchvision(CheckContext(tmp_path))
    assert finding.level == "problem"
    assert error in finding.message
    monkeypatch.setattr(software, "call_operator", lambda: "")
    assert software.check_torchvision(CheckContext(tmp_path)).level == "ok"


def test_the_weights_must_be_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.check_mtcnn(CheckContext(tmp_path)).level == "ok"
    monkeypatch.setattr(networks, "read_package_file", lambda network: read_package_file(network)[:-1] + b"x")
    finding = software.check_mtcnn(CheckContext(tmp_path))
    assert (finding.level, finding.advice) == ("problem", "pip install --force-reinstall mtcnn==1.0.0")
