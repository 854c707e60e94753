"""The flow `reproduce` beside DVC alone: independent stages at the same time, and its own cost with nothing to do."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, compared

WORK = "flow reproduce"
STAGES, SECONDS, AT_ONCE = 8, 20.0, 2
SIDES = "benchmarks.sides.flows"


def measure(bench: Bench) -> Iterator[Row]:
    """Seconds of wall clock: stages that sleep cost no CPU."""
    seconds = bench.pick(SECONDS, 2.0)
    options = {"scratch": str(bench.scratch), "stages": STAGES, "seconds": seconds, "at_once": AT_ONCE}
    naps = bench.alternate({name: Side(f"{SIDES}:{name}", options) for name in ("dvc_repro", "flow")}, rounds=1)
    note = f"{STAGES} independent stages of {seconds:g} s, {AT_ONCE} at once; the server runs already"
    figure = "seconds, beside dvc repro"
    yield compared(WORK, figure, naps["flow"].quickest, naps["dvc_repro"].quickest, at_most=0.6, note=note)
    idle = bench.alternate({name: Side(f"{SIDES}:{name}", options) for name in ("dvc_status", "idle_flow")}, rounds=3)
    figure = "seconds with all up to date, beside dvc status"
    note = f"{STAGES} stages; no process of a stage is started"
    yield compared(WORK, figure, idle["idle_flow"].quickest, idle["dvc_status"].quickest, note=note)
