"""Killed at any moment and started again: the bytes of an uninterrupted run, and no finished shard is made twice.

`kill -9` goes to the whole process group, as from a batch system or a machine that runs out of memory.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.artifacts.store import Store

WORKERS = 2
KILLS = 1  # `make bench` does it twenty times

EMBED = """
from pathlib import Path
from fer_pipeline.stages import embed
from tests.project import project_settings

if __name__ == "__main__":
    summary = embed.run(
        embed.Config(batch_size=1), project_settings(workers={workers}), name="street", faces=Path("faces/street"),
        model=Path("primitive-0"), out=Path("out"), store=Path("store"),
    )
    print(summary.counts["made"])
"""
ALIGN = """
from pathlib import Path
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.stages import align
from tests.project import project_settings

if __name__ == "__main__":
    raw = DatasetSettings(adapter="image_folder", path=Path("raw"), split="train")
    project = project_settings(workers={workers}, classes=("anger", "fear"), datasets=dict(set=raw))
    config = align.Config(crop=32, prealigned=True, shard_rows=20, cut="count")
    summary = align.run(config, project, name="set", out=Path("out"), store=Path("store"))
    print(summary.counts["made"])
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script.format(workers=WORKERS), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(script: str, folder: Path) -> int:
    told, faults = start(script, folder).communicate()
    assert told.strip().isdigit(), faults
    return int(told)


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The finished shards, each with what a second making would change."""
    shards = [path for path in folder.glob("store/shards/*/*") if not path.name.startswith(".")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def embed_world(tmp_path: Path, small_faces, small_primitive) -> Path:
    small_faces("street", [400] * 12)
    small_primitive()
    return tmp_path


@pytest.fixture
def align_world(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for number in range(240):
        path = tmp_path / "raw" / ("anger", "fear")[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (320, 320, 3), np.uint8)).save(path, compress_level=1)
    return tmp_path


@pytest.mark.parametrize(("script", "world"), [(EMBED, "embed_world"), (ALIGN, "align_world")], ids=["embed", "align"])
def test_killed_at_random_moments(script: str, world: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(world)
    shards = finish(script, folder)
    (folder / "out").rename(folder / "whole")
    (folder / "store").rename(folder / "elsewhere")
    moments = random.Random(7)
    before: dict[str, tuple[int, int]] = {}
    seen: set[Path] = set()
    for _ in range(KILLS):
        process = start(script, folder)
        enough = len(before) + moments.randint(1, shards // (KILLS + 1))
        while len(finished(folder)) < enough:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(moments.random() * 0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)  # until the group is gone
        after = finished(folder)
        assert after.items() >= before.items(), "a finished shard was made again"
        half = set(folder.glob("store/shards/*/.*.tmp")) - seen
        assert len(half) <= WORKERS, "more than one shard of work lost for a worker"
        seen |= half
        before = after
    assert len(before) < shards
    assert finish(script, folder) == shards - len(before)
    assert finished(folder).items() >= before.items()
    assert bytes_of(folder / "out") == bytes_of(folder / "whole")
    assert all(Store(folder / "store", verify=True).has(key) for key in finished(folder))
