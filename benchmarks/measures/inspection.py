"""Answers about a mined subset of 150,000 faces in several committed versions, and writing its gallery."""

from collections.abc import Iterator

from benchmarks.harness.bench import Bench
from benchmarks.harness.rounds import Side
from benchmarks.harness.rows import Row, bounded
from benchmarks.pools.subsets import write_pictures, write_project

WORK = "look into mined faces"
SIDES = "benchmarks.sides.inspection"
SQL = "SELECT label, count(*), avg(mined.margin) FROM mined JOIN scores USING (face_id) GROUP BY label"
ANSWERS = {
    "show": ["show", "--rev", "HEAD~1"],
    "query with a join": ["query", SQL, "--rev", "HEAD~1"],
    "diff": ["diff", "HEAD~2", "HEAD~1"],
    "diff, all faces as JSON": ["diff", "HEAD~2", "HEAD~1", "--format", "json"],
    "log": ["log"],
}


def measure(bench: Bench) -> Iterator[Row]:
    """CPU-seconds of whole commands, which on an idle machine are their seconds; and the gallery's memory and size."""
    folder = bench.scratch / "project"
    folder.mkdir()
    kept = write_project(folder, rows=bench.pick(200_000, 2000), margins=(0.05, 0.1, 0.15, 0.1), seed=0)
    answers = {
        name: Side(f"{SIDES}:answer", {"folder": str(folder), "words": words}) for name, words in ANSWERS.items()
    }
    versions = f"versions of {', '.join(f'{number:,}' for number in kept)} faces"
    for name, rounds in bench.alternate(answers, rounds=2).items():
        note = f"{versions}; {rounds.best and rounds.facts[0]['bytes']:,} bytes printed"
        yield bounded(WORK, f"CPU-seconds, {name}", rounds.best, at_most=3, note=note)
    place, rows = bench.scratch / "gallery", bench.pick(20_000, 2000)
    place.mkdir()
    [number] = write_project(place, rows=rows, margins=(0.1,), seed=0)
    write_pictures(place, rows=rows, pictures=rows // 10, anchors=(anchors := rows // 4), dimensions=512, seed=0)
    gallery = bench.alternate({"gallery": Side(f"{SIDES}:gallery", {"folder": str(place)})}, rounds=1)["gallery"]
    note = f"{number:,} faces of 112 px, {anchors:,} anchor faces, 512 numbers each"
    yield bounded(WORK, "CPU-seconds to write a gallery, per 1,000 faces", gallery.best / number * 1000, note=note)
    told = f"{gallery.facts[0]['files']:,} files, {gallery.facts[0]['bytes'] / 1e6:,.0f} MB"
    yield bounded(WORK, "MB above start", max(gallery.anon_mb), note=f"without mapped files; {told}")
