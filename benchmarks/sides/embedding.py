"""Sides of `embedding`. In: Parquet shards of faces and a ResNet-18. A round takes all faces to their features.

Facts hold the mean length of the features, so that speed is only compared between equal answers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Round = Callable[[], dict[str, Any]]

NETWORK, CROP = "resnet18", 112
BATCH, PLAIN_BATCH = 256, 64


def ours(faces: str, scratch: str, seed: int) -> Round:
    """Shards of faces to shards of embeddings, as a worker of `embed` makes them."""
    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.artifacts.embeddings import iter_embeddings
    from fer_pipeline.artifacts.faces import shard_paths
    from fer_pipeline.embedding.shards import EmbedOptions, make_embedder
    from fer_pipeline.sharding.jobs import Job

    model = saved(Path(scratch), NETWORK, CROP, seed=seed)
    options = EmbedOptions(model, weights="generated", extractor={"batch_size": BATCH})
    make, out = make_embedder(options, "cpu"), Path(scratch) / "embeddings.arrow"

    def over(shards: list[Path]) -> dict[str, Any]:
        lengths = []
        for shard in shards:
            make(Job("", shard.name, 0, shard), out, lambda _: None)
            vectors = np.concatenate([part.vector for part in iter_embeddings(out)])
            lengths.append(np.linalg.norm(vectors.astype(np.float32), axis=1))
        return lengths_of(lengths)

    over(shard_paths(Path(faces))[:1])
    return lambda: over(shard_paths(Path(faces)))


def forward(faces: str, scratch: str, seed: int) -> Round:
    """Our forward pass alone, in the same process as a worker's: crops that are decoded and in memory."""
    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.artifacts.faces import shard_paths
    from fer_pipeline.core.heap import keep_freed_memory
    from fer_pipeline.embedding.features import Extractor
    from fer_pipeline.embedding.shards import decoded_batches
    from fer_pipeline.networks.checkpoints import load_checkpoint

    keep_freed_memory()
    checkpoint = load_checkpoint(saved(Path(scratch), NETWORK, CROP, seed=seed))
    extractor = Extractor(checkpoint, batch_size=BATCH)
    shards = shard_paths(Path(faces))
    batches = [images for shard in shards for _, images in decoded_batches(shard, BATCH, threads=0)]

    def over(chosen: list[np.ndarray]) -> dict[str, Any]:
        return lengths_of([np.linalg.norm(features, axis=1) for features in extractor.stream(chosen)])

    over(batches[:2])
    return lambda: over(batches)


def plain(faces: str, scratch: str, seed: int) -> Round:
    """What one writes first: Pillow, single precision, NCHW, batches of 64, the network as it was trained."""
    import io

    import pyarrow.parquet as pq
    import torch
    from PIL import Image

    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.networks.backbones import build
    from fer_pipeline.networks.settings import read_card
    from fer_pipeline.networks.weights import read_tensors

    folder = saved(Path(scratch), NETWORK, CROP, seed=seed)
    card = read_card(folder)
    network = build(card.network, len(card.classes), seed=seed)
    network.load_state_dict(read_tensors(folder / "weights.safetensors"))
    network.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.preprocessing.mean, card.preprocessing.std))

    def pictures(shards: list[Path]) -> Iterator[np.ndarray]:
        for shard in shards:
            for batch in pq.ParquetFile(shard).iter_batches(PLAIN_BATCH, columns=["image"]):
                rows = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in batch.column(0).to_pylist()]
                yield np.stack([np.asarray(row) for row in rows])

    @torch.inference_mode()
    def over(shards: list[Path]) -> dict[str, Any]:
        lengths, halves = [], []
        for batch in pictures(shards):
            x = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float().div(255)
            features = network.features((x - mean) / std)
            halves.append(features.numpy().astype(np.float16))
            lengths.append(features.norm(dim=1).numpy())
        np.save(Path(scratch) / "plain.npy", np.concatenate(halves))
        return lengths_of(lengths)

    shards = sorted(Path(faces).glob("part-*.parquet"))
    over(shards[:1])
    return lambda: over(shards)


def lengths_of(lengths: list[np.ndarray]) -> dict[str, Any]:
    """How many faces, and how long their features are in the mean."""
    joined = np.concatenate(lengths)
    return {"faces": len(joined), "length": float(joined.mean())}
