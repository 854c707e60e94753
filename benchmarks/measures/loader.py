"""Training batches of 112 px faces from shards, beside torch's DataLoader over a folder, and whether a step waits."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Rounds, Side
from benchmarks.harness.rows import Row, bounded, compared
from benchmarks.pools.faces import Plan, write_part
from fer_pipeline.artifacts.faces import shard_paths, write_shard

WORK = "training batches at 112 px"
SIDES = "benchmarks.sides.loader"
SEED, CLASSES = 0, 7


def measure(bench: Bench) -> Iterator[Row]:
    """The rows of the table; shards and files are removed with the scratch folder."""
    rows, steps = bench.pick((9600, 20), (640, 2))
    shards, files = bench.scratch / "shards", bench.scratch / "files"
    write_labelled(shards, files, rows)
    kinds = {
        "held": {"held": True, "order": "rows", "threads": 1},
        "streamed": {"held": False, "order": "blocks", "threads": 1},
    }
    peers = {"DataLoader": 0, "DataLoader, a worker": 1}
    found = bench.alternate(
        {
            **{name: Side(f"{SIDES}:ours", {"shards": str(shards), **kind}) for name, kind in kinds.items()},
            **{name: Side(f"{SIDES}:pillow", {"files": str(files), "workers": n}) for name, n in peers.items()},
        },
        rounds=3,
    )
    rates = {name: one.facts[0]["items"] / one.best for name, one in found.items() if one.fault is None}
    for name in kinds:
        for peer in peers:
            yield compared(
                WORK, f"images per CPU-second, {name} / {peer}", rates[name], rates[peer],
                note=agreement(found[name], found[peer]),
            )  # fmt: skip
    options = {"shards": str(shards), "scratch": str(bench.scratch), "threads": 1, "steps": steps}
    trained = bench.alternate(
        {name: Side(f"{SIDES}:training", {**options, "held": name == "held"}) for name in kinds}, rounds=2
    )
    for name in kinds:
        facts = min(trained[name].facts, key=lambda fact: fact["waited"] / fact["seconds"])
        yield bounded(
            WORK, f"share of a ResNet-18 step that waits, {name}", facts["waited"] / facts["seconds"], at_most=0.01,
            note=f"loss {facts['loss']:.6f}",
        )  # fmt: skip


def write_labelled(shards: Path, files: Path, rows: int) -> None:
    """Generated faces with labels in turn, as shards and as a folder a class."""
    plan = Plan("loader", rows, max(1, rows // 32), SEED)
    number = 0
    for part in plan.parts():
        write_part(shards.parent / "plain", plan, part)
    for path in shard_paths(shards.parent / "plain"):
        table = pq.read_table(path)
        labels = [(number + row) % CLASSES for row in range(len(table))]
        place = table.schema.get_field_index("label")
        table = table.set_column(place, table.schema.field(place), pa.array(labels, pa.int64()))
        write_shard(shards / path.name, table)
        for label, image in zip(labels, table.column("image").to_pylist(), strict=True):
            file = files / str(label) / f"{number:07d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image["bytes"])
            number += 1


def agreement(one: Rounds, other: Rounds) -> str:
    """Whether a turn of both holds the same pixels."""
    same = one.facts[0]["pixels"] == other.facts[0]["pixels"]
    return "the same pixels" if same else "other pixels"
