"""What is said of a run's speed: only what is true of it, with the setting that mends it."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import torch

from fer_pipeline.artifacts import faces
from fer_pipeline.training.batches import Stream
from fer_pipeline.training.fit import advise, describe_waiting
from fer_pipeline.training.images import ShardImages


def stream(toy, *, keep: int | None, root: Path, order: str = "rows") -> Stream:
    """Twenty faces, held or in shards."""
    images = toy(20, 0)
    if keep is not None:
        rows = [
            {"face_id": name, "image": {"bytes": faces.encode(pixels, format="png"), "path": None}}
            for name, pixels in zip(images.face_id, images.all_pixels().numpy(), strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=faces.face_schema(("a", "b", "c"), crop=24))
        faces.write_shard(root / "part-00000.parquet", table)
        images = replace(images, images=ShardImages(faces.shard_paths(root), keep=keep, threads=1))
    return Stream(images, 4, seed=0, order=order)


def test_held_images_need_no_advice(toy, tmp_path: Path) -> None:
    assert advise({"labelled": stream(toy, keep=None, root=tmp_path)}, waited=5.0, seconds=10.0) == ()
    assert describe_waiting(5.0, 10.0) == "waited for images 50.0% of the time"


def test_what_reads_at_random_or_waits_is_told_its_setting(toy, tmp_path: Path) -> None:
    rows = stream(toy, keep=0, root=tmp_path)
    lines = advise({"mined": rows}, waited=0.1, seconds=10.0)
    assert len(lines) == 1
    assert lines[0].startswith("the 20 images of mined do not fit into memory")
    assert "training.order: blocks" in lines[0]
    kept = stream(toy, keep=1 << 30, root=tmp_path)
    assert advise({"mined": kept}, waited=0.1, seconds=10.0) == ()
    blocks = stream(toy, keep=0, root=tmp_path, order="blocks")
    (line,) = advise({"mined": blocks}, waited=3.0, seconds=10.0)
    assert "waited for images 30.0% of the time; raise resources.workers" in line
    assert torch.equal(blocks.batch(0).images, kept.set.pixels(blocks.rows(0)))
