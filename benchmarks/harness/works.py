"""Runs measures. In: names of works. Out: their rows and rounds, or a row that says why there are none."""

import importlib
import pkgutil
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import measures
from benchmarks.harness.bench import Bench
from benchmarks.harness.machine import moment
from benchmarks.harness.process import ROOT
from benchmarks.harness.records import record
from benchmarks.harness.rounds import SideError
from benchmarks.harness.rows import Row, unmeasured
from fer_pipeline.core.errors import ConfigError

# The order of the table; works that are not named here follow by name.
ORDER = ("scoring", "mtcnn", "embedding", "parquet", "engine", "resume", "distill", "loader", "gpu")


def available() -> list[str]:
    """The works that can be measured, in the table's order."""
    found = {module.name for module in pkgutil.iter_modules(measures.__path__)}
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def chosen(names: list[str]) -> list[str]:
    """The named works in the table's order; all of them where none is named."""
    known = available()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(known) or 'none yet'}")
    return [name for name in known if not names or name in names]


def run(name: str, *, quick: bool, folder: Path | None, tell: Callable[[Row], None]) -> dict[str, Any]:
    """Measures one work; `tell` hears each row as it comes. The record says when, at which commit, under what load."""
    began, circumstances = time.time(), moment(ROOT)
    rows: list[Row] = []
    with _scratch(name, folder) as scratch:
        bench = Bench(quick=quick, scratch=scratch)
        try:
            for row in importlib.import_module(f"benchmarks.measures.{name}").measure(bench):
                rows.append(row)
                tell(row)
        except SideError as fault:
            rows.append(unmeasured(name, str(fault)))
            tell(rows[-1])
        except Exception as error:  # the other works are measured all the same
            rows.append(unmeasured(name, " ".join(f"{type(error).__name__}: {error}".split())[:300]))
            tell(rows[-1])
    measured = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))
    circumstances |= {"measured": measured, "seconds": round(time.time() - began, 1)}
    return record(rows, bench.taken, circumstances, {str(bench.scratch): "SCRATCH", str(ROOT): "PROJECT"})


@contextmanager
def _scratch(name: str, folder: Path | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=f"fer-bench-{name}-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
