"""Embedding faces from Parquet shards on one core, beside our forward pass alone and beside a plain loop."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.machine import cores
from benchmarks.harness.rounds import Rounds, Side, SideError
from benchmarks.harness.rows import Row, bounded, compared
from benchmarks.pools.faces import Plan, write_faces

WORK = "embed ResNet-18, 112 px"
FACES, DRAWN, SEED = 2560, 80, 0
CLOSE = 1e-3  # of the features' mean length: what half precision keeps
SIDES = "benchmarks.sides.embedding"


def measure(bench: Bench) -> Iterator[Row]:
    """Faces per CPU-second, and the memory that embedding takes."""
    faces, folder = bench.pick(FACES, 512), bench.scratch / "pool"
    write_faces(folder, Plan("generated", faces, DRAWN, SEED), workers=cores(), advance=lambda _: None)
    options = {"faces": str(folder / "train"), "scratch": str(bench.scratch), "seed": SEED}
    names = ("ours", "forward", "plain")
    found = bench.alternate({name: Side(f"{SIDES}:{name}", options) for name in names}, rounds=3)
    rate = {name: faces / found[name].best for name in names}
    check_equal(found)
    note = f"{faces:,} faces, batches of 256"
    yield compared(WORK, "faces/s, beside our forward pass", rate["ours"], rate["forward"], at_least=0.95, note=note)
    plain = "Pillow, float32, NCHW, batches of 64"
    yield compared(WORK, "faces/s, beside a plain loop", rate["ours"], rate["plain"], at_least=1.4, note=plain)
    yield bounded(WORK, "MB above start, after a warm-up", max(found["ours"].peak_mb))


def check_equal(found: dict[str, Rounds]) -> None:
    """All sides must have found the same features, as far as their mean length tells."""
    length = {name: rounds.facts[0]["length"] for name, rounds in found.items()}
    if max(length.values()) - min(length.values()) > CLOSE * min(length.values()):
        raise SideError(f"the sides disagree on the mean length of the features: {length}")
