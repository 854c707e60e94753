"""A disk without room: one line, no half shard, and a rerun that completes with the bytes of a run that had room."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_pipeline.stages import embed
from tests.project import project_settings

RUN = """
import json, os, resource, sys
from pathlib import Path
from fer_pipeline.core.errors import DataError
from fer_pipeline.stages import embed
from tests.project import project_settings

place, workers, ballast = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]


def run():
    return embed.run(
        embed.Config(), project_settings(workers=workers), name="street", faces=Path("faces/street"),
        model=Path("primitive-0"), out=place / "out", store=place / "store",
    ).counts["made"]


if __name__ == "__main__":
    if ballast == "limit":  # of a file's size: the largest shard cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    else:
        (place / "ballast").write_bytes(bytes(int(ballast)))
    told = ""
    try:
        run()
    except DataError as error:
        told = str(error)
    files = [str(path.relative_to(place)) for path in sorted(place.rglob("*")) if path.is_file()]
    if ballast == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (place / "ballast").unlink()
    made = run()
    import hashlib

    out = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((place / "out").iterdir())]
    print(json.dumps({"told": told, "files": files, "made": made, "out": out}))
"""
SIZES = [100, 100, 100, 600, 100, 100]


@pytest.fixture
def world(tmp_path: Path, small_faces, small_primitive) -> Path:
    small_faces("street", SIZES)
    small_primitive()
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    return tmp_path


def start(world: Path, place: Path, *words: str, within: tuple[str, ...] = ()) -> dict:
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [*within, sys.executable, "run.py", str(place), *words]
    told = subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


def check(found: dict, world: Path) -> None:
    options = {"name": "street", "faces": world / "faces" / "street", "model": world / "primitive-0"}
    embed.run(embed.Config(), project_settings(), out=world / "whole", store=world / "elsewhere", **options)
    whole = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((world / "whole").iterdir())]
    assert "the disk of the store is full; finished shards are kept, free some space and run again" in found["told"]
    assert "\n" not in found["told"]
    assert not [file for file in found["files"] if file.endswith(".tmp") or file.startswith("out")]
    finished = [file for file in found["files"] if file.startswith("store/shards/")]
    assert found["made"] == len(SIZES) - len(finished) > 0
    assert found["out"] == whole
    assert len(whole) == len(SIZES)


def test_a_shard_that_the_disk_does_not_take(world: Path) -> None:
    found = start(world, world, "1", "limit")
    assert len([file for file in found["files"] if file.startswith("store/shards/")]) == 3
    check({**found, "files": [file for file in found["files"] if file.startswith("store")]}, world)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_true_full_disk(world: Path, workers: int) -> None:
    disk = world / "disk"
    disk.mkdir()
    mount = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=1m none "{disk}" && exec "$@"', "sh")
    if subprocess.run([*mount, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a tmpfs")
    room = 64 * 1024
    check(start(world, disk, str(workers), str(2**20 - room), within=mount), world)
    assert not list(disk.iterdir()), "it was the tmpfs that was written to"
