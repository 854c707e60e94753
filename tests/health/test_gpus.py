"""What driver, torch and FAISS see of GPUs, told by hand."""

from pathlib import Path

import pytest

from fer_pipeline.core.settings import Resources
from fer_pipeline.health import gpus
from fer_pipeline.health.finding import Place
from fer_pipeline.health.gpus import Gpus

GIB = 1 << 30
BUILT = ("sm_75", "sm_80", "sm_90a", "sm_120", "compute_120")
TWO = Gpus(2, "580.65", ("H", "H"), ((9, 0), (9, 0)), (80 * GIB, 80 * GIB), BUILT, "13.0")
NO_TORCH = Gpus(seen=1, driver="470.82", built_for=BUILT, cuda="13.0")


@pytest.mark.parametrize(
    ("found", "device", "environment", "level", "words"),
    [
        (TWO, "auto", {}, "ok", "2 GPUs, driver 580.65, CUDA 13.0"),
        (Gpus(), "auto", {}, "ok", "no NVIDIA GPU"),
        (Gpus(), "cuda:1", {}, "problem", "resources.device is cuda:1"),
        (NO_TORCH, "auto", {"CUDA_VISIBLE_DEVICES": ""}, "warning", "CUDA_VISIBLE_DEVICES is ''"),
        (NO_TORCH, "auto", {}, "problem", "driver 470.82"),
        (Gpus(seen=1, driver="580.65"), "auto", {}, "problem", "built for the CPU alone"),
    ],
)
def test_driver(tmp_path: Path, found: Gpus, device: str, environment: dict[str, str], level: str, words: str) -> None:
    told = gpus.driver(Place(tmp_path, Resources(device=device), environment), gpus=lambda: found)
    assert told.level == level
    assert words in told.found
    assert bool(told.cure) == (level != "ok")


def with_one(capability: tuple[int, int], memory: int) -> Gpus:
    return Gpus(1, "580.65", ("G",), (capability,), (memory * GIB,), BUILT, "13.0")


@pytest.mark.parametrize(
    ("found", "wanted", "level", "words"),
    [
        (Gpus(), None, "ok", "none to look at"),
        (TWO, 2, "ok", "H, 9.0, 80 GiB; H, 9.0, 80 GiB"),
        (TWO, 3, "problem", "resources.gpus wants 3"),
        (with_one((6, 1), 11), None, "problem", "code from 7.5 on"),
        (with_one((12, 0), 16), None, "ok", "G, 12.0, 16 GiB"),
        (with_one((7, 5), 4), None, "warning", "little memory"),
    ],
)
def test_gpu(tmp_path: Path, found: Gpus, wanted: int | None, level: str, words: str) -> None:
    told = gpus.gpu(Place(tmp_path, Resources(gpus=wanted)), gpus=lambda: found)
    assert told.level == level
    assert words in told.found


@pytest.mark.parametrize(
    ("count", "level"), [(None, "warning"), (0, "warning"), (1, "problem"), (2, "ok"), (3, "problem")]
)
def test_faiss(tmp_path: Path, count: int | None, level: str) -> None:
    assert gpus.faiss(Place(tmp_path), gpus=lambda: TWO, count=lambda: count).level == level
