"""A measure that fails itself."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rows import Row


def measure(bench: Bench) -> Iterator[Row]:
    yield Row("wrong", str(bench.scratch), None, None, None, "", None)
    raise KeyError("labels")
