"""Reading encoded faces from Parquet shards, beside WebDataset and beside a folder of files; the page cache is warm."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.bench import Bench
from benchmarks.harness.machine import cores
from benchmarks.harness.rounds import Side, SideError
from benchmarks.harness.rows import Row, compared
from benchmarks.pools.faces import Plan, stored, write_faces

WORK = "read Parquet, no decoding"
PICTURES, DRAWN, SEED = 40_000, 200, 0
TAR_PICTURES = 5000  # as many as a Parquet shard of the pool holds
SIDES = "benchmarks.sides.parquet"


def measure(bench: Bench) -> Iterator[Row]:
    """Pictures per CPU-second."""
    plan = Plan("generated", bench.pick(PICTURES, 2000), bench.pick(DRAWN, 20), SEED)
    write_faces(bench.scratch / "pool", plan, workers=cores(), advance=lambda _: None)
    write_copies(bench.scratch, plan)
    places = {"ours": "pool/train", "ours_named": "pool/train", "webdataset": "tars", "files": "files"}
    found = bench.alternate(
        {
            name: Side(f"{SIDES}:{name}", {"folder": str(bench.scratch / place)}, peer=name == "webdataset")
            for name, place in places.items()
        },
        rounds=5,
    )
    rate = {name: plan.rows / found[name].best for name in places if found[name].fault is None}
    if len({tuple(rounds.facts[0].values()) for rounds in found.values() if rounds.facts}) != 1:
        raise SideError("the sides did not read the same pictures")
    mean = found["ours"].facts[0]["bytes"] / plan.rows
    size = f"{plan.rows:,} JPEGs of {mean / 1000:.1f} kB, warm"
    yield compared(WORK, "pictures/s, beside a folder", rate["ours"], rate["files"], at_least=5, note=size)
    named = f"with the faces' identifiers {rate['ours_named']:,.0f}/s"
    assert found["webdataset"].best > 0  # raises the side's fault
    yield compared(WORK, "pictures/s, beside WebDataset", rate["ours"], rate["webdataset"], at_least=20, note=named)


def write_copies(scratch: Path, plan: Plan) -> None:
    """The pool's pictures as single files and as tar files."""
    (scratch / "files").mkdir()
    (scratch / "tars").mkdir()
    tar = None
    for number, (_, picture) in enumerate(stored(scratch / "pool", plan)):
        name = f"{number:08d}.jpg"
        (scratch / "files" / name).write_bytes(picture)
        if number % TAR_PICTURES == 0:
            if tar is not None:
                tar.close()
            tar = tarfile.open(scratch / "tars" / f"part-{number // TAR_PICTURES:05d}.tar", "w")
        assert tar is not None
        entry = tarfile.TarInfo(name)
        entry.size = len(picture)
        tar.addfile(entry, io.BytesIO(picture))
    if tar is not None:
        tar.close()
