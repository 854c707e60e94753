"""What the shard engine costs beside a bare loop, and what a pass over finished shards costs."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side, SideError
from benchmarks.harness.rows import Row, bounded, cheaper
from benchmarks.pools.shards import write_pictures, write_stubs

WORK = "shard engine"
ROWS, SHARDS, FINISHED = 10_000, 2, 580
CROP, SEED = 112, 0
SIDES = "benchmarks.sides.engine"


def measure(bench: Bench) -> Iterator[Row]:
    """CPU-seconds over the bare loop in per cent, and CPU-seconds of a pass without work beside one shard's."""
    rows, finished = bench.pick(ROWS, 500), bench.pick(FINISHED, 20)
    write_pictures(bench.scratch / "faces", shards=SHARDS, rows=rows, crop=CROP, seed=SEED)
    write_stubs(bench.scratch / "stubs", shards=finished, rows=rows, crop=CROP)
    options = {"scratch": str(bench.scratch), "crop": CROP, "seed": SEED}
    faces = {"faces": str(bench.scratch / "faces")}
    found = bench.alternate({name: Side(f"{SIDES}:{name}", options | faces) for name in ("bare", "engine")}, rounds=4)
    if found["bare"].facts[0] != found["engine"].facts[0] and not found["bare"].fault and not found["engine"].fault:
        raise SideError("the engine's embeddings are not those of the bare loop")
    over = 100 * (found["engine"].best / found["bare"].best - 1)
    share = found["bare"].best / (SHARDS * rows) * 1e6
    note = f"{SHARDS} shards of {rows:,} faces; a cheap network, {share:,.0f} µs a face (ResNet-18 takes 11,000)"
    yield bounded(WORK, "% of CPU over the bare loop", over, at_most=3.0, note=note)
    stubs = {"faces": str(bench.scratch / "stubs")}
    idle = bench.alternate({"nothing to do": Side(f"{SIDES}:nothing_to_do", options | stubs)}, rounds=3)[
        "nothing to do"
    ]
    one = found["bare"].best / SHARDS
    if idle.facts and idle.facts[0] != {"shards": finished, "made": 0}:
        raise SideError(f"a pass over finished shards made some: {idle.facts[0]}")
    note = f"{finished} finished shards against the work of one, with the same cheap network"
    yield cheaper(WORK, "CPU-seconds of a pass that finds all finished", idle.best, one, at_least=1.0, note=note)
