"""A measure of nothing much: every kind of row, and a side that fails."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, bounded, compared


def measure(bench: Bench) -> Iterator[Row]:
    (bench.scratch / "pool").write_text("x")
    step = bench.pick(20, 2)
    rounds = bench.alternate(
        {
            "ours": Side("tests.benchmarks.sides:counting", {"step": step}),
            "broken": Side("tests.benchmarks.sides:failing"),
        },
        rounds=2,
    )
    total = rounds["ours"].facts[-1]["total"]
    yield compared("tiny", "counted", total, 2.0, at_least=2)
    yield bounded("tiny", "counted", total, at_most=3, note="four | is more")
    yield compared("tiny", "seconds", rounds["ours"].best, rounds["broken"].best)
