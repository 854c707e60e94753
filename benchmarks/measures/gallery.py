"""How soon Chromium shows the first page of a gallery of 150,000 generated faces, by the server of `mined view`."""

import shutil
from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, bounded
from benchmarks.pools.galleries import CLASSES, write_gallery

WORK = "first screen of a gallery"


def measure(bench: Bench) -> Iterator[Row]:
    """Seconds of wall clock and megabytes; without Chromium a row says so."""
    if shutil.which("chromium") is None:
        yield Row(WORK, "no Chromium here", None, None, None, "", None)
        return
    write_gallery(bench.scratch, per_class=(per_class := bench.pick(21_429, 500)), seed=0)
    side = Side("benchmarks.sides.gallery:first_screen", {"folder": str(bench.scratch)})
    rounds = bench.alternate({"Chromium": side}, rounds=5)["Chromium"]
    cost = f"{rounds.best:.1f} CPU-seconds with the start of Chromium"
    seconds = sorted(facts["seconds"] for facts in rounds.facts)
    note = f"{per_class * len(CLASSES):,} faces; median {seconds[2]:.2f}, most {seconds[-1]:.2f}; {cost}"
    yield bounded(WORK, "seconds, wall clock", seconds[0], at_most=2, note=note)
    most = max(rounds.facts, key=lambda facts: facts["bytes"])
    yield bounded(WORK, "MB", most["bytes"] / 1e6, at_most=5, note=f"{most['files']} files")
