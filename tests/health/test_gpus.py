"""What driver, torch and FAISS see of GPUs, finding by hand."""

from pathlib import Path

import pytest

from fer_pipeline.core.settings import Resources
from fer_pipeline.health import machine
from fer_pipeline.health.machine import Gpus
from fer_pipeline.health.software import CheckContext

GIB = 1 << 30
BUILT = ("sm_75", "sm_80", "sm_90a", "sm_120", "compute_120")
TWO = Gpus(2, "580.65", ("H", "H"), ((9, 0), (9, 0)), (80 * GIB, 80 * GIB), BUILT, "13.0")
NO_TORCH = Gpus(num_devices=1, driver="470.82", architectures=BUILT, cuda="13.0")


@pytest.mark.parametrize(
    ("seen", "device", "environment", "level", "words"),
    [
        (TWO, "auto", {}, "ok", "2 GPUs, driver 580.65, CUDA 13.0"),
        (Gpus(), "auto", {}, "ok", "no NVIDIA GPU"),
        (Gpus(), "cuda:1", {}, "problem", "resources.device is cuda:1"),
        (NO_TORCH, "auto", {"CUDA_VISIBLE_DEVICES": ""}, "warning", "CUDA_VISIBLE_DEVICES is ''"),
        (NO_TORCH, "auto", {}, "problem", "driver 470.82"),
        (Gpus(num_devices=1, driver="580.65"), "auto", {}, "problem", "built for the CPU alone"),
    ],
)
def test_driver(
    tmp_path: Path,
    seen: Gpus,
    device: str,
    environment: dict[str, str],
    level: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "query_gpus", lambda: seen)
    finding = machine.check_driver(CheckContext(tmp_path, Resources(device=device), environment))
    assert finding.level == level
    assert words in finding.message
    assert bool(finding.advice) == (level != "ok")


def with_one(capability: tuple[int, int], memory: int) -> Gpus:
    return Gpus(1, "580.65", ("G",), (capability,), (memory * GIB,), BUILT, "13.0")


@pytest.mark.parametrize(
    ("seen", "wanted", "level", "words"),
    [
        (Gpus(), None, "ok", "no GPU to check"),
        (TWO, 2, "ok", "H, 9.0, 80 GiB; H, 9.0, 80 GiB"),
        (TWO, 3, "problem", "resources.gpus wants 3"),
        (with_one((6, 1), 11), None, "problem", "code from 7.5 on"),
        (with_one((12, 0), 16), None, "ok", "G, 12.0, 16 GiB"),
        (with_one((7, 5), 4), None, "warning", "little memory"),
    ],
)
def test_gpu(
    tmp_path: Path, seen: Gpus, wanted: int | None, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "query_gpus", lambda: seen)
    finding = machine.check_gpu(CheckContext(tmp_path, Resources(gpus=wanted)))
    assert finding.level == level
    assert words in finding.message


@pytest.mark.parametrize(
    ("count", "level"), [(None, "warning"), (0, "warning"), (1, "problem"), (2, "ok"), (3, "problem")]
)
def test_faiss(tmp_path: Path, count: int | None, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "query_gpus", lambda: TWO)
    monkeypatch.setattr(machine, "count_faiss_gpus", lambda: count)
    assert machine.check_faiss(CheckContext(tmp_path)).level == level
