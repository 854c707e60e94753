"""Killed at any moment and started again: the bytes of an uninterrupted run, and no finished shard is made twice.

`kill -9` goes to the whole process group, as from a batch system or a machine that runs out of memory. The run to which
the bytes are compared has one worker; the killed one and the one after it have two.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.stages import align, embed
from tests.project import project_settings

WORKERS = 2
KILLS = 1  # `make bench` does it twenty times

KILLED = """
from pathlib import Path
from tests.stages import test_resume

if __name__ == "__main__":
    test_resume.{run}(Path.cwd(), workers={workers})
"""


def run_embed(folder: Path, *, workers: int) -> int:
    """How many shards were made."""
    options = {"name": "street", "faces": folder / "faces" / "street", "model": folder / "primitive-0"}
    config, project = embed.Config(batch_size=1), project_settings(workers=workers)
    return int(embed.run(config, project, out=folder / "out", store=folder / "store", **options).counts["made"])


def run_align(folder: Path, *, workers: int) -> int:
    """How many shards were made."""
    raw = DatasetSettings(adapter="image_folder", path=folder / "raw", split="train")
    project = project_settings(workers=workers, classes=("anger", "fear"), datasets={"set": raw})
    config = align.Config(crop=32, prealigned=True, shard_rows=20, cut="count")
    return int(align.run(config, project, name="set", out=folder / "out", store=folder / "store").counts["made"])


def start(run: Callable[..., int], folder: Path) -> subprocess.Popen[str]:
    """The stage in a process group of its own, with two workers."""
    (folder / "script.py").write_text(KILLED.format(run=run.__name__, workers=WORKERS), encoding="utf-8")
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
    small_faces("street", [200] * 12)
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


@pytest.mark.parametrize(
    ("run", "world"), [(run_embed, "embed_world"), (run_align, "align_world")], ids=["embed", "align"]
)
def test_killed_at_random_moments(run: Callable[..., int], world: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(world)
    shards = run(folder, workers=1)
    (folder / "out").rename(folder / "whole")
    (folder / "store").rename(folder / "elsewhere")
    moments = random.Random(7)
    before: dict[str, tuple[int, int]] = {}
    seen: set[Path] = set()
    for _ in range(KILLS):
        process = start(run, folder)
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
    assert run(folder, workers=WORKERS) == shards - len(before)
    assert finished(folder).items() >= before.items()
    assert bytes_of(folder / "out") == bytes_of(folder / "whole")
    assert all(Store(folder / "store", verify=True).has(key) for key in finished(folder))
