"""Memory, processors, limits and the clock: every level by facts of the test's own."""

import shutil
from pathlib import Path

import pytest

from fer_pipeline.core.settings import Resources
from fer_pipeline.health import machine
from fer_pipeline.health.findings import CheckContext

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "memory_gb", "workers", "level"),
    [(16.0, 4.0, 2, "ok"), (4.0, 3.5, 2, "warning"), (4.0, None, 8, "warning"), (4.0, 5.0, 1, "problem")],
)
def test_memory(tmp_path: Path, free: float, memory_gb: float | None, workers: int, level: str) -> None:
    context = CheckContext(tmp_path, Resources(memory_gb=memory_gb, workers=workers))
    finding = machine.check_memory(context, free=lambda: int(free * GIB))
    assert (finding.level, bool(finding.advice)) == (level, level != "ok")


def test_processors(tmp_path: Path) -> None:
    context = CheckContext(tmp_path, Resources(workers=3))
    assert machine.check_processors(context, allowed=lambda: 3.0).level == "ok"
    finding = machine.check_processors(context, allowed=lambda: 1.5)
    assert (finding.level, finding.advice) == ("warning", "set resources.workers to 1")
    ray = CheckContext(tmp_path, Resources(workers=300, backend="ray"))
    assert machine.check_processors(ray, allowed=lambda: 2.0).level == "ok"


def test_a_quota_of_the_container_counts(tmp_path: Path) -> None:
    whole = machine.allowed_processors(tmp_path)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.allowed_processors(tmp_path) == 0.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.allowed_processors(tmp_path) == whole


@pytest.mark.parametrize(("limit", "level"), [(-1, "ok"), (4096, "ok"), (1024, "warning"), (255, "problem")])
def test_open_files(tmp_path: Path, limit: int, level: str) -> None:
    assert machine.check_open_files(CheckContext(tmp_path), limit=lambda: limit).level == level


def test_shared_memory(tmp_path: Path) -> None:
    context = CheckContext(tmp_path)
    assert machine.check_shared_memory(context, folder=tmp_path / "none").level == "problem"
    assert machine.check_shared_memory(context, folder=tmp_path, free=lambda _: 64 << 20).level == "warning"
    finding = machine.check_shared_memory(context, folder=tmp_path, free=lambda _: 8 * GIB)
    assert (finding.level, finding.message) == ("ok", f"8.0 GiB are free in {tmp_path}")
    assert shutil.disk_usage(tmp_path).free < GIB or machine.check_shared_memory(context, folder=tmp_path).level == "ok"


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
def test_clock(tmp_path: Path, now: float, stamp: float, level: str, words: str) -> None:
    finding = machine.check_clock(CheckContext(tmp_path), now=lambda: now, timestamp=lambda _: stamp)
    assert finding.level == level
    assert words in finding.message
