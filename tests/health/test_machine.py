"""Memory, processors, limits and the clock: every level by facts of the test's own."""

import resource
import shutil
from pathlib import Path

import pytest

from fer_pipeline.core.settings import Resources
from fer_pipeline.health import machine
from fer_pipeline.health.software import CheckContext
from fer_pipeline.training import images

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "memory_gb", "workers", "level"),
    [(16.0, 4.0, 2, "ok"), (4.0, 3.5, 2, "warning"), (4.0, None, 8, "warning"), (4.0, 5.0, 1, "problem")],
)
def test_memory(
    tmp_path: Path,
    free: float,
    memory_gb: float | None,
    workers: int,
    level: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "free_memory", lambda: int(free * GIB))
    context = CheckContext(tmp_path, Resources(memory_gb=memory_gb, workers=workers))
    finding = machine.check_memory(context)
    assert (finding.level, bool(finding.advice)) == (level, level != "ok")


def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = CheckContext(tmp_path, Resources(workers=3))
    monkeypatch.setattr(machine, "allowed_processors", lambda: 3.0)
    assert machine.check_processors(context).level == "ok"
    monkeypatch.setattr(machine, "allowed_processors", lambda: 1.5)
    finding = machine.check_processors(context)
    assert (finding.level, finding.advice) == ("warning", "set resources.workers to 1")
    ray = CheckContext(tmp_path, Resources(workers=300, backend="ray"))
    assert machine.check_processors(ray).level == "ok"


def test_a_quota_of_the_container_counts(tmp_path: Path) -> None:
    whole = machine.allowed_processors(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.allowed_processors(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.allowed_processors(tmp_path) == whole


@pytest.mark.parametrize(("limit", "level"), [(-1, "ok"), (4096, "ok"), (1024, "warning"), (255, "problem")])
def test_open_files(tmp_path: Path, limit: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert machine.check_open_files(CheckContext(tmp_path)).level == level


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = CheckContext(tmp_path)
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.check_shared_memory(context).level == "problem"
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert shutil.disk_usage(tmp_path).free < GIB or machine.check_shared_memory(context).level == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (GIB, GIB, 64 << 20))
    assert machine.check_shared_memory(context).level == "warning"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (9 * GIB, GIB, 8 * GIB))
    finding = machine.check_shared_memory(context)
    assert (finding.level, finding.message) == ("ok", f"8.0 GiB are free in {tmp_path}")


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "stamp", "level", "words"),
    [
        (NOW, NOW + 1, "ok", "agree"),
        (NOW, NOW + 60, "warning", "60 s ahead of"),
        (NOW, NOW - 7200, "warning", "7,200 s behind"),
        (86400.0, 86400.0, "problem", "1970-01-02"),
    ],
)
def test_clock(
    tmp_path: Path, now: float, stamp: float, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "file_time", lambda _: stamp)
    monkeypatch.setattr(machine.time, "time", lambda: now)
    finding = machine.check_clock(CheckContext(tmp_path))
    assert finding.level == level
    assert words in finding.message
