"""Sides of `resume`. In: a stage. A round kills it again and again at random moments and lets it end at last.

`python -m benchmarks.sides.resume STAGE FOLDER` is the stage itself, in a process group of its own, so that its workers
are killed with it. Facts hold what the kills did: shards that were made twice, work that was lost, bytes that differ.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]

WORKERS = 2
SHARDS_A_KILL = 8  # every run is to finish some shards, and all runs together not all
AWAITED = 3  # shards at most before a kill, and then up to half a second
FACES_A_SHARD = {"embed": 150, "align": 12}
DRAWN = 100
CROP = 112


def killed(stage: str, scratch: str, kills: int, seed: int) -> Round:
    """A world for the stage, an uninterrupted run of it, and then the kills."""
    folder = Path(scratch) / stage
    (_faces if stage == "embed" else _pictures)(folder, shards=SHARDS_A_KILL * kills, seed=seed)
    made = _finish(stage, folder)
    (folder / "out").rename(folder / "whole")
    shutil.rmtree(folder / "store")

    def once() -> dict[str, Any]:
        facts = _kill(stage, folder, kills=kills, moments=random.Random(seed))
        before = _finished(folder)
        rest = _finish(stage, folder)
        equal = _bytes(folder / "out") == _bytes(folder / "whole")
        return {**facts, "shards": made, "equal": equal, "made_at_last": rest, "missing": made - len(before)}

    return once


def _kill(stage: str, folder: Path, *, kills: int, moments: random.Random) -> dict[str, int]:
    before: dict[str, tuple[int, int]] = {}
    seen: set[Path] = set()
    facts = {"kills": 0, "again": 0, "lost_a_worker": 0}
    for _ in range(kills):
        process = _start(stage, folder)
        enough = len(before) + moments.randint(0, AWAITED)
        while len(_finished(folder)) < enough and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.random() * 0.5)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)  # until the whole group is gone
        after, half = _finished(folder), set(folder.glob("store/shards/*/.*.tmp"))
        facts["kills"] += 1
        facts["again"] += sum(after.get(key) != state for key, state in before.items())
        facts["lost_a_worker"] = max(facts["lost_a_worker"], -(-len(half - seen) // WORKERS))
        before, seen = after, seen | half
    return facts


def _start(stage: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.sides.resume", stage, str(folder)]
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=stderr)


def _finish(stage: str, folder: Path) -> int:
    process = _start(stage, folder)
    told, _ = process.communicate()
    if process.returncode:
        said = (folder / "stderr").read_text("utf-8", "replace").strip().splitlines()
        raise RuntimeError(f"{stage} ended with {process.returncode}: {said[-1] if said else 'nothing said'}")
    return int(told)


def _finished(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.glob("store/shards/*/*") if not path.name.startswith(".")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def _bytes(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return whole.hexdigest()


def _faces(folder: Path, *, shards: int, seed: int) -> None:
    from benchmarks.pools.shards import write_pictures
    from benchmarks.sides.checkpoints import saved

    write_pictures(folder / "faces", shards=shards, rows=FACES_A_SHARD["embed"], crop=CROP, seed=seed)
    saved(folder, "small", CROP, seed=seed).rename(folder / "model")


def _pictures(folder: Path, *, shards: int, seed: int) -> None:
    from fer_pipeline.artifacts.faces import encode
    from fer_pipeline.synthesis.sets import PortraitSet, SampleKey, SetSettings

    settings = SetSettings(splits={"train": DRAWN}, subjects=DRAWN, styles={"wild": 1.0}, balance={})
    portraits = PortraitSet(settings, seed=seed, name="raw", size=144)
    images = [encode(portraits.draw(SampleKey("train", number))[0]) for number in range(DRAWN)]
    (folder / "raw" / "anger").mkdir(parents=True)
    for number in range(shards * FACES_A_SHARD["align"]):
        (folder / "raw" / "anger" / f"{number:06d}.jpg").write_bytes(images[number % DRAWN])


def _run(stage: str, folder: Path) -> int:
    from fer_pipeline.core.settings import DatasetSettings, ProjectSettings, Resources
    from fer_pipeline.stages import align, embed

    dataset = DatasetSettings(adapter="image_folder", path=folder / "raw", split="train")
    project = ProjectSettings.model_construct(  # all that the two stages read
        anchor="anchor",
        classes=("anger", "fear"),
        datasets={"pool": dataset},
        resources=Resources(device="cpu", workers=WORKERS),
    )
    options = {"name": "pool", "out": folder / "out", "store": folder / "store"}
    if stage == "embed":
        summary = embed.run(embed.Config(), project, faces=folder / "faces", model=folder / "model", **options)
    else:
        config = align.Config(crop=CROP, shard_rows=FACES_A_SHARD["align"], cut="count")
        summary = align.run(config, project, **options)
    return int(summary.counts["made"])


if __name__ == "__main__":
    sys.stdout.write(str(_run(sys.argv[1], Path(sys.argv[2]))))
