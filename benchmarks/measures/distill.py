"""The memory of distilling a ResNet-18 through 30 unrolled steps, beside that of one step and of the unrolled graph."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Rounds, Side
from benchmarks.harness.rows import Row, bounded, cheaper, compared

WORK = "distil ResNet-18"
SIDES = "benchmarks.sides.distill"
SEED, KEPT = 0, 8
GRAPH = (2, 4)  # steps that are enough to see how the graph grows: 30 of them do not fit into this machine's memory


def measure(bench: Bench) -> Iterator[Row]:
    """The rows of the table."""
    steps, side = bench.pick((30, 112), (6, 32))
    few, more = GRAPH
    names = {1: "1 step", few: f"{few} steps", more: f"{more} steps", steps: f"{steps} steps"}
    ours: dict[int, Rounds] = {}
    for number, name in names.items():
        options = {"steps": number, "side": side, "weights_kept": KEPT, "seed": SEED}
        ours |= {number: bench.alternate({name: Side(f"{SIDES}:ours", options)}, rounds=1)[name]}
    graph: dict[int, Rounds] = {}
    for number in GRAPH:
        name = f"graph of {number} steps"
        options = {"steps": number, "side": side, "seed": SEED}
        graph |= {number: bench.alternate({name: Side(f"{SIDES}:graph", options)}, rounds=1)[name]}

    one, all_steps = (max(ours[number].anon_mb) for number in (1, steps))
    stored = min(KEPT, steps) * ours[1].facts[0]["weights_mb"]
    yield compared(
        WORK, f"MB, {steps} steps / 1 step and {KEPT} stored weights", all_steps, one + stored, at_most=1.3,
        note=f"{side} px, 7 images a step; 1 step takes {one:,.0f} MB, the stored weights {stored:,.0f} MB",
    )  # fmt: skip
    more_mb, weights_mb = all_steps - stored - one, ours[1].facts[0]["weights_mb"]
    yield bounded(
        WORK, f"MB, ({steps} steps - stored weights) / 1 step", (all_steps - stored) / one, at_most=1.3,
        note=f"the stricter reading; what is more than one step's is {more_mb / weights_mb:.1f} times the weights",
    )  # fmt: skip
    a_step = (max(graph[more].anon_mb) - max(graph[few].anon_mb)) / (more - few)
    wanted = max(graph[few].anon_mb) + (steps - few) * a_step
    yield cheaper(
        WORK, f"MB, the unrolled graph of {steps} steps", all_steps, wanted,
        note=f"the graph's is from {few} and {more} steps, {a_step:,.0f} MB a step",
    )  # fmt: skip
    yield compared(
        WORK, f"CPU-seconds, {more} steps / the unrolled graph", ours[more].best, graph[more].best,
        note=f"gradients differ by {difference(ours[more], graph[more]):.1e}",
    )  # fmt: skip
    again = ours[steps].best / steps / (ours[more].best / more)
    yield bounded(WORK, f"CPU-seconds a step, {steps} steps / {more} steps", again, note="the repeated steps' price")


def difference(one: Rounds, other: Rounds) -> float:
    """The largest relative difference of what the sides found."""
    left, right = one.facts[0], other.facts[0]
    return max(abs(left[key] - right[key]) / abs(right[key]) for key in ("loss", "by_images", "by_sizes"))
