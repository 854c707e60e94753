"""Grouping a million perceptual hashes by likeness, beside faiss."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, bounded, cheaper

WORK = "near duplicates by hash"
SIDES = "benchmarks.sides.duplicates"


def measure(bench: Bench) -> Iterator[Row]:
    """CPU-seconds, memory, and whether the planted pairs were found."""
    number, alike = bench.pick((1_000_000, 20_000), (20_000, 400))
    options = {"number": number, "alike": alike, "bits": 12, "seed": 0}
    ours = bench.alternate({"ours": Side(f"{SIDES}:ours", options)}, rounds=2)["ours"]
    size = f"{number:,} hashes, pairs within 12 of 255 bits, mirrored or not"
    yield bounded(WORK, "CPU-seconds", ours.best, note=size)
    yield bounded(
        WORK, "MB above start", max(ours.peak_mb), at_most=400, note=f"the hashes are {number * 32 / 1e6:.3g}"
    )
    missed = 2 * alike - ours.facts[0]["faces"]
    yield bounded(WORK, "planted faces not found", missed, at_most=0, note=f"of {2 * alike:,}")
    part = options | {"number": number // 4, "alike": alike // 4}  # faiss takes minutes for all of them
    found = bench.alternate({name: Side(f"{SIDES}:{name}", part) for name in ("ours", "with_faiss")}, rounds=2)
    fewer, faiss = found["ours"], found["with_faiss"]
    figure, same = "CPU-seconds, faiss multi-hash", "same" if fewer.best and fewer.facts == faiss.facts else "other"
    note = f"{number // 4:,} of them, {same} groups; MB {max(fewer.peak_mb):.3g} and {max(faiss.peak_mb):,.0f}"
    yield cheaper(WORK, figure, fewer.best, faiss.best, note=note)
