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
import hashlib, json, resource, sys
from pathlib import Path
from fer_pipeline.core.errors import DataError
from fer_pipeline.stages import embed
from tests.project import project_settings



def run(place, workers):
    return embed.run(
        embed.Config(), project_settings(workers=workers), name="street", faces=Path("faces/street"),
        model=Path("primitive-0"), out=place / "out", store=place / "store",
    ).counts["made"]


def fill(place, workers, ballast):
    if ballast is None:  # of a file's size: the largest shard cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    else:
        (place / "ballast").write_bytes(bytes(ballast))
    told = ""
    try:
        run(place, workers)
    except DataError as error:
        told = str(error)
    files = [str(path.relative_to(place)) for path in sorted(place.rglob("*")) if path.is_file()]
    if ballast is None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        (place / "ballast").unlink()
    made = run(place, workers)
    out = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((place / "out").iterdir())]
    return {"told": told, "files": files, "made": made, "out": out}


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    print(json.dumps([fill(Path(place), workers, ballast) for place, workers, ballast in wanted]))
"""
SIZES = [100, 100, 100, 600, 100, 100]


@pytest.fixture
def world(tmp_path: Path, small_faces, small_primitive) -> Path:
    small_faces("street", SIZES)
    small_primitive()
    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    return tmp_path


def check(found: dict, world: Path) -> None:
    whole = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((world / "whole").iterdir())]
    assert "the disk of the store is full; finished shards are kept, free some space and run again" in found["told"]
    assert "\n" not in found["told"]
    assert not [file for file in found["files"] if file.endswith(".tmp") or file.startswith("out")]
    finished = [file for file in found["files"] if file.startswith("store/shards/")]
    assert found["made"] == len(SIZES) - len(finished) > 0
    assert found["out"] == whole
    assert len(whole) == len(SIZES)


def test_a_disk_without_room(world: Path) -> None:
    """A shard that the disk does not take; then true disks that fill up, under one worker and under two."""
    options = {"name": "street", "faces": world / "faces" / "street", "model": world / "primitive-0"}
    embed.run(embed.Config(), project_settings(), out=world / "whole", store=world / "elsewhere", **options)
    limited, *disks = (world / name for name in ("limited", "one", "two"))
    for place in (limited, *disks):
        place.mkdir()
    mounts = " && ".join(f'mount -t tmpfs -o size=1m none "{disk}"' for disk in disks)
    mount = ("unshare", "-rm", "sh", "-c", f'{mounts} && exec "$@"', "sh")
    mountable = subprocess.run([*mount, "true"], capture_output=True).returncode == 0
    ballast = 2**20 - 64 * 1024
    wanted = [(limited, 1, None), *((disk, workers, ballast) for workers, disk in enumerate(disks, 1) if mountable)]
    command = [sys.executable, "run.py", json.dumps(wanted, default=str)]
    told = subprocess.run(
        [*mount, *command] if mountable else command,
        cwd=world,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    found, *full = json.loads(told.stdout.splitlines()[-1])
    assert len([file for file in found["files"] if file.startswith("store/shards/")]) == 3
    check(found, world)
    for one in full:
        check(one, world)
    assert not any(any(disk.iterdir()) for disk in disks), "it was the tmpfs that was written to"
    if not mountable:
        pytest.skip("this machine lets nobody mount a tmpfs")
