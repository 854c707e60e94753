"""What a GPU gives: embedding beside its forward pass alone, scoring beside copying. Seconds are of wall clock."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.machine import cores, gpu_name
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, compared
from benchmarks.measures.scoring import rows_that_stay_cached
from benchmarks.pools.embeddings import write_pool
from benchmarks.pools.faces import Plan, write_faces

EMBED, SCORE = "GPU: embed ResNet-34, 112 px", "GPU: score f16 against 7 classes"
FACES, DRAWN, ROWS, DIMENSIONS, SEED = 200_000, 2000, 5_800_000, 512, 0
SIDES = "benchmarks.sides.gpu"


def measure(bench: Bench) -> Iterator[Row]:
    """Two rows; without a GPU they say so."""
    if gpu_name() is None:
        for work in (EMBED, SCORE):
            yield Row(work, "no GPU here", None, None, None, "", None)
        return
    yield embedding(bench)
    yield scoring(bench)


def embedding(bench: Bench) -> Row:
    """Faces per second from Parquet to embeddings on the disk, beside crops that lie on the GPU already."""
    faces, folder = bench.pick(FACES, 4000), bench.scratch / "faces"
    plan = Plan("generated", faces, min(DRAWN, faces), SEED)
    write_faces(folder, plan, workers=cores(), advance=lambda _: None)
    options = {"scratch": str(bench.scratch), "device": "cuda:0", "seed": SEED}
    found = bench.alternate(
        {
            "end to end": Side(f"{SIDES}:embedding", {**options, "faces": str(folder)}),
            "forward": Side(f"{SIDES}:forward", {**options, "rows": faces}),
        }
    )
    ours, alone = (faces / found[name].quickest for name in ("end to end", "forward"))
    return compared(EMBED, "faces/s, beside the forward pass alone", ours, alone, note=f"{faces:,} faces, float16")


def scoring(bench: Bench) -> Row:
    """Gigabytes of features per second from the page cache to scores, beside copies from page-locked memory."""
    rows, folder = bench.pick(min(ROWS, rows_that_stay_cached()), 40_000), bench.scratch / "pool"
    write_pool(folder, rows=rows, dimensions=DIMENSIONS, seed=SEED, advance=lambda _: None)
    found = bench.alternate(
        {
            "scores": Side(f"{SIDES}:scoring", {"folder": str(folder), "device": "cuda:0", "seed": SEED}),
            "copies": Side(f"{SIDES}:copying", {"rows": rows, "dimensions": DIMENSIONS, "device": "cuda:0"}),
        }
    )
    size = rows * DIMENSIONS * 2 / 1e9
    ours, copies = (size / found[name].quickest for name in ("scores", "copies"))
    return compared(SCORE, "GB/s, beside copying to the GPU alone", ours, copies, note=f"{rows:,} × {DIMENSIONS}")
