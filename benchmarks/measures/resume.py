"""`kill -9` of a whole run, workers and all, at random moments on one store: what was lost of it."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, bounded, unmeasured

KILLS, SEED = 20, 0
SIDES = "benchmarks.sides.resume"


def measure(bench: Bench) -> Iterator[Row]:
    """Three rows for each stage: bytes that differ, shards made twice, and shards of work lost for a worker."""
    kills = bench.pick(KILLS, 3)
    for stage in ("align", "embed"):
        work = f"kill -9 of {stage}"
        options = {"stage": stage, "scratch": str(bench.scratch), "kills": kills, "seed": SEED}
        found = bench.alternate({stage: Side(f"{SIDES}:killed", options)}, rounds=1)[stage]
        if found.fault is not None:
            yield unmeasured(work, found.fault)
            continue
        facts = found.facts[0]
        note = (
            f"{facts['kills']} kills, {facts['shards']} shards, 2 workers, {facts['missing']} shards left for the end"
        )
        yield bounded(work, "outputs unlike an uninterrupted run's", float(not facts["equal"]), at_most=0, note=note)
        again = facts["again"] + facts["made_at_last"] - facts["missing"]
        yield bounded(work, "finished shards made again", float(again), at_most=0)
        yield bounded(work, "most shards of work lost for a worker", float(facts["lost_a_worker"]), at_most=1)
