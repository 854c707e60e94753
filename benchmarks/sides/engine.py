"""Sides of `engine`. In: shards of faces and a small network. A round embeds all shards, bare or through the engine.

Facts hold a digest of the embeddings, so that cost is only compared between equal bytes.
"""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]

NETWORK = "small"  # cheap on purpose: beside a large network the engine's share is smaller
BATCH = 256


def bare(faces: str, scratch: str, crop: int, seed: int) -> Round:
    """The loop that one would write: the network once, then shard after shard into a folder."""
    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.artifacts.faces import shard_paths
    from fer_pipeline.embedding.shards import EmbedOptions, make_embedder
    from fer_pipeline.sharding.jobs import Job

    model = saved(Path(scratch), NETWORK, crop, seed=seed)
    options = EmbedOptions(model, weights=_weights(model), extractor={"batch_size": BATCH})

    def once(count: int | None = None) -> dict[str, Any]:
        make, out = make_embedder(options, "cpu"), Path(tempfile.mkdtemp(dir=scratch))
        for number, shard in enumerate(shard_paths(Path(faces))[:count]):
            make(Job("", str(shard), 0, shard), out / f"part-{number:05d}.arrow", lambda _: None)
        return {"digest": _digest(out)}

    once(1)
    return once


def engine(faces: str, scratch: str, crop: int, seed: int) -> Round:
    """The stage `embed` on an empty store: hashes, shard store, checksums, last runs, progress and all."""
    from benchmarks.sides.checkpoints import saved

    model = saved(Path(scratch), NETWORK, crop, seed=seed)

    def once() -> dict[str, Any]:
        place = Path(tempfile.mkdtemp(dir=scratch))
        _embed(Path(faces), model, out=place / "out", store=place / "store")
        return {"digest": _digest(place / "out")}

    once()
    return once


def nothing_to_do(faces: str, scratch: str, crop: int, seed: int) -> Round:
    """The stage `embed` where every shard is in the store; the shards there are stubs, since none is read."""
    from benchmarks.sides.checkpoints import saved
    from fer_pipeline.artifacts.store import Store
    from fer_pipeline.stages import embed

    model, store = saved(Path(scratch), NETWORK, crop, seed=seed), Path(scratch) / "store"
    kept = Store(store, owner="embed@pool")
    for job in embed.plan(_config(), _project(), name="pool", faces=Path(faces), model=model, store=store).jobs:
        kept.make(job.key, lambda path, key=job.key: path.write_text(key))

    def once() -> dict[str, Any]:
        counts = _embed(Path(faces), model, out=Path(scratch) / "out", store=store)
        return {"shards": counts["shards"], "made": counts["made"]}

    once()
    return once


def _embed(faces: Path, model: Path, *, out: Path, store: Path) -> dict[str, int | float]:
    from fer_pipeline.stages import embed

    options = {"name": "pool", "faces": faces, "model": model, "out": out, "store": store}
    return embed.run(_config(), _project(), **options).counts


def _project() -> Any:
    from fer_pipeline.core.settings import ProjectSettings, Resources

    resources = Resources(device="cpu", workers=1)
    return ProjectSettings.model_construct(anchor="anchor", resources=resources)  # all that embed reads


def _config() -> Any:
    from fer_pipeline.stages import embed

    return embed.Config(batch_size=BATCH)


def _weights(model: Path) -> str:
    from fer_pipeline.core.files import file_sha256

    return file_sha256(model / "weights.safetensors")


def _digest(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.glob("part-*.arrow")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]
