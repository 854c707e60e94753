"""Versions that are known to break, and the files of packages that must be the known ones."""

from pathlib import Path

import pytest

from fer_pipeline.alignment.weights import read_package_file
from fer_pipeline.health import versions
from fer_pipeline.health.finding import Place


@pytest.mark.parametrize(
    ("check", "version", "level"),
    [
        (versions.torch, "2.11.0", "ok"),
        (versions.torch, "2.15.0+cu130", "ok"),
        (versions.torch, "2.10.1", "problem"),
        (versions.torch, None, "problem"),
        (versions.dvc, "3.60.0", "ok"),
        (versions.dvc, "3.59.2", "problem"),
        (versions.dvc, "4.0.0", "problem"),
        (versions.prefect, "3.8.8", "ok"),
        (versions.prefect, "3.8.7", "problem"),
        (versions.prefect, "3.9.0", "problem"),
        (versions.prefect, None, "ok"),
        (versions.fastapi, "0.139.2", "ok"),
        (versions.fastapi, "0.154.0", "problem"),
        (versions.fastapi, "0.155.1", "problem"),
        (versions.sqlalchemy, "2.0.58", "ok"),
        (versions.sqlalchemy, "2.1.0", "problem"),
        (versions.sqlalchemy, "2.1.0b1", "problem"),
    ],
)
def test_versions(tmp_path: Path, check, version: str | None, level: str) -> None:
    found = check(Place(tmp_path), version=lambda _: version)
    assert found.level == level
    assert found.cure.startswith("pip install '") == (level == "problem")


def test_python(tmp_path: Path) -> None:
    assert versions.python(Place(tmp_path), running=(3, 10)).level == "problem"
    assert versions.python(Place(tmp_path), running=(3, 12)).level == "ok"


def test_torchvision_must_have_its_operators(tmp_path: Path) -> None:
    fault = "operator torchvision::nms does not exist"
    found = versions.torchvision(Place(tmp_path), version=lambda _: "2.13.0+cpu", fault=lambda: fault)
    assert found.level == "problem"
    assert fault in found.found
    assert versions.torchvision(Place(tmp_path), fault=lambda: "").level == "ok"


def test_the_weights_must_be_the_published_ones(tmp_path: Path) -> None:
    assert versions.mtcnn(Place(tmp_path)).level == "ok"
    found = versions.mtcnn(Place(tmp_path), read=lambda network: read_package_file(network)[:-1] + b"x")
    assert (found.level, found.cure) == ("problem", "pip install --force-reinstall mtcnn==1.0.0")
