"""Versions that are known to break, and the files of packages that must be the known ones."""

from pathlib import Path

import pytest

from fer_pipeline.alignment.weights import read_package_file
from fer_pipeline.health import software
from fer_pipeline.health.findings import CheckContext


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
def test_versions(tmp_path: Path, package: str, version: str | None, level: str) -> None:
    finding = software.compare_version(package, CheckContext(tmp_path), get_version=lambda _: version)
    assert finding.level == level
    assert finding.advice.startswith("pip install '") == (level == "problem")


def test_python(tmp_path: Path) -> None:
    assert software.check_python(CheckContext(tmp_path), running=(3, 10)).level == "problem"
    assert software.check_python(CheckContext(tmp_path), running=(3, 12)).level == "ok"


def test_torchvision_must_have_its_operators(tmp_path: Path) -> None:
    error = "operator torchvision::nms does not exist"
    finding = software.check_torchvision(
        CheckContext(tmp_path), get_version=lambda _: "2.13.0+cpu", get_error=lambda: error
    )
    assert finding.level == "problem"
    assert error in finding.message
    assert software.check_torchvision(CheckContext(tmp_path), get_error=lambda: "").level == "ok"


def test_the_weights_must_be_the_published_ones(tmp_path: Path) -> None:
    assert software.check_mtcnn(CheckContext(tmp_path)).level == "ok"
    finding = software.check_mtcnn(CheckContext(tmp_path), read=lambda network: read_package_file(network)[:-1] + b"x")
    assert (finding.level, finding.advice) == ("problem", "pip install --force-reinstall mtcnn==1.0.0")
