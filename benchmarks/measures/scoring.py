"""Scoring a pool of 5.8 million faces against 7 centroids, beside bare reading and beside numpy, torch and faiss."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Rounds, Side
from benchmarks.harness.rows import Row, bounded, cheaper, compared
from benchmarks.pools.embeddings import write_pool

WORK = "score f16 against 7 classes"
ROWS, DIMENSIONS, SEED = 5_800_000, 512, 0
SPARE = 6 * 2**30  # bytes of memory that the sides and everybody else need beside the page cache
SIDES = "benchmarks.sides.scoring"


def measure(bench: Bench) -> Iterator[Row]:
    """The rows of the table; the pool is removed with the scratch folder."""
    rows = bench.pick(min(ROWS, rows_that_stay_cached()), 40_000)
    folder = bench.scratch / "pool"
    write_pool(folder, rows=rows, dimensions=DIMENSIONS, seed=SEED, advance=lambda _: None)
    size = f"{rows:,} × {DIMENSIONS}" + (
        "" if bench.quick or rows == ROWS else f": of {ROWS:,}, more would not stay cached"
    )
    options = {"folder": str(folder), "seed": SEED}
    names = {"numpy": "with_numpy", "torch": "with_torch", "faiss CPU": "with_faiss"}
    found = bench.alternate(
        {
            "reading": Side(f"{SIDES}:reading", options),
            "ours": Side(f"{SIDES}:ours", options),
            "ours, written": Side(f"{SIDES}:ours_written", {**options, "out": str(bench.scratch / "scores")}),
            **{name: Side(f"{SIDES}:{entry}", options) for name, entry in names.items()},
            "torch, turned": Side(f"{SIDES}:with_torch", {**options, "classes_first": True}),
            "simsimd": Side(f"{SIDES}:with_simsimd", options, peer=True),
        },
        rounds=3,
    )
    ours, reading = found["ours"], found["reading"]
    yield compared(
        WORK, "CPU-seconds, ours / reading into 8 MB", ours.best, reading.best, at_most=2.2, note=f"{size}; not written"
    )
    writing = found["ours, written"].best - ours.best
    yield bounded(WORK, "CPU-seconds to write the scores", writing, note="beside the above")
    for name in names:
        yield cheaper(
            WORK, f"CPU-seconds, {name}", ours.best, found[name].best, at_least=3.5, note=agreement(ours, found[name])
        )
    turned = "the fastest that we could make of torch: centroids × features instead of features × centroids"
    yield cheaper(WORK, "CPU-seconds, torch turned round", ours.best, found["torch, turned"].best, note=turned)
    if found["simsimd"].fault is None:
        rounded = "it rounds the centroids to half precision: " + agreement(ours, found["simsimd"])
        yield cheaper(WORK, "CPU-seconds, simsimd", ours.best, found["simsimd"].best, note=rounded)
    peak = max(max(found[name].peak_mb) for name in ("ours", "ours, written"))
    yield bounded(WORK, "MB above start, mapped files included", peak, at_most=300)
    yield from truth(bench, options)


def truth(bench: Bench, options: dict[str, object]) -> Iterator[Row]:
    """Labels beside float64 on every row."""
    facts = bench.alternate({"checked": Side(f"{SIDES}:checked", options)}, rounds=1)["checked"]
    assert facts.best > 0  # raises the side's fault
    told = facts.facts[0]
    note = (
        f"of {told['faces']:,} rows; {told['other']:,} others among {told['ties']:,} ties; "
        f"cosines within {told['largest']:.1e}"
    )
    yield bounded(WORK, "labels other than float64's", told["wrong"], at_most=0, note=note)


def agreement(ours: Rounds, peer: Rounds) -> str:
    """Whether the peer gave the same labels."""
    same = ours.facts[0]["labels"] == peer.facts[0]["labels"]
    return "same labels" if same else "not all labels the same"


def rows_that_stay_cached() -> int:
    """How many rows of the pool fit into the memory that is free now; all where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return ROWS
    free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}["MemAvailable"]
    return max((free - SPARE) // (2 * DIMENSIONS), 100_000)
