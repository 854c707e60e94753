"""The sides of the GPU's measure, tried on a CPU: they do what they are timed for."""

from pathlib import Path

import numpy as np

from benchmarks.pools.embeddings import write_pool
from benchmarks.pools.faces import Plan, write_part
from benchmarks.sides import gpu
from benchmarks.sides.scoring import ours
from fer_pipeline.artifacts.embeddings import iter_embeddings


def test_faces_are_embedded_from_end_to_end(tmp_path: Path) -> None:
    plan = Plan("generated", 12, 3, 0)
    write_part(tmp_path / "faces", plan, plan.parts()[0])
    once = gpu.embedding(str(tmp_path / "faces"), str(tmp_path), "cpu", 0)
    assert once() == {"faces": 12}
    (found,) = iter_embeddings(tmp_path / "embeddings.arrow")
    assert len(found) == 12
    assert len(np.unique(found.vector, axis=0)) == 12  # no two faces alike
    assert gpu.forward(5, str(tmp_path), "cpu", 0)() == {"faces": 5}


def test_scores_are_those_of_the_cpu_measure(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", rows=300, dimensions=16, seed=1, advance=lambda _: None, shard_rows=128)
    assert gpu.scoring(str(tmp_path / "pool"), "cpu", 1)() == ours(str(tmp_path / "pool"), 1)()


def test_every_byte_is_copied() -> None:
    assert gpu.copying(3000, 512, "cpu")() == {"bytes": 3_072_000}
