"""Sides of `gpu`. Every round ends when the device has finished; the device `cpu` tries the same without a GPU."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]

BATCH = 1024
NETWORK, CROP = "resnet34", 112


def embedding(faces: str, scratch: str, device: str, seed: int) -> Round:
    """Shards of faces to shards of embeddings, as a worker of `embed` makes them."""
    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.artifacts.faces import shard_paths
    from fer_pipeline.embedding.shards import EmbedOptions, make_embedder
    from fer_pipeline.sharding.jobs import Job

    model = saved(Path(scratch), NETWORK, CROP, seed=seed)
    options = EmbedOptions(model, weights="generated", extractor={"batch_size": BATCH})
    shards, make = shard_paths(Path(faces) / "train"), make_embedder(options, device)

    def over(chosen: list[Path]) -> dict[str, Any]:
        made = 0

        def advance(items: int) -> None:
            nonlocal made
            made += items

        for shard in chosen:
            make(Job("", shard.name, 0, shard), Path(scratch) / "embeddings.arrow", advance)
        return {"faces": made}

    over(shards[:1])
    return lambda: over(shards)


def forward(rows: int, scratch: str, device: str, seed: int) -> Round:
    """As many crops through the same network, from a batch that lies on the device; the features stay there."""
    import torch

    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.embedding.features import Extractor
    from fer_pipeline.networks.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(saved(Path(scratch), NETWORK, CROP, seed=seed), device=device)
    extractor = Extractor(checkpoint, batch_size=BATCH)
    shape = (min(rows, BATCH), CROP, CROP, 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).to(device)

    def once() -> dict[str, Any]:
        for start in range(0, rows, BATCH):
            extractor.compute(crops[: rows - start])
        _wait(device)
        return {"faces": rows}

    extractor.compute(crops)
    _wait(device)
    return once


def scoring(folder: str, device: str, seed: int) -> Round:
    """Shards of embeddings to cosines, nearest classes and margins, which are not written."""
    import numpy as np

    from benchmarks.sides.scoring import BLOCK_ROWS, centroids_and_paths
    from fer_pipeline.artifacts.embeddings import stream_embeddings
    from fer_pipeline.scoring.engines import make_engine

    centroids, paths = centroids_and_paths(folder, seed)
    engine = make_engine("auto", centroids, device=device)

    def over(chosen: list[Path]) -> dict[str, Any]:
        digest, faces = hashlib.sha256(), 0
        blocks = (block for path in chosen for block in stream_embeddings(path, rows=BLOCK_ROWS))
        for block, found in engine.stream((block, block.parts) for block in blocks):
            digest.update(found.nearest.astype(np.int8).tobytes())
            faces += len(block)
        return {"faces": faces, "labels": digest.hexdigest()[:16], "engine": engine.name}

    over(paths[:2])
    return lambda: over(paths)


def copying(rows: int, dimensions: int, device: str) -> Round:
    """As many bytes from one page-locked block of 64 MB to the device."""
    import torch

    size = rows * dimensions * 2
    block = torch.zeros(min(size, 1 << 26), dtype=torch.uint8, pin_memory=device != "cpu")
    there = block.to(device, copy=True)

    def once() -> dict[str, Any]:
        for start in range(0, size, len(block)):
            part = slice(0, min(len(block), size - start))
            there[part].copy_(block[part], non_blocking=True)
        _wait(device)
        return {"bytes": size}

    once()
    return once


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)
