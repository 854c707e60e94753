"""Aligned faces and the primitive learner in, their features out, shard by shard.

In: `data/faces/<set>/train` and `models/primitive`. Out: `data/embeddings/<set>`, one shard for each shard of faces. A
finished shard is kept in the store under its faces, weights and settings and never made again, however often the stage
is killed and however many shards join the pool. The device is no part of that key: a GPU's shard and a CPU's differ by
about what half precision cuts off.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from fer_pipeline.artifacts.faces import open_shard, read_classes, shard_paths
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import file_sha256, replacing_folder
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.progress import progress
from fer_pipeline.core.settings import PlainName, Resources, Settings
from fer_pipeline.core.summaries import Summary
from fer_pipeline.mining.embedding import Job, embed_shards
from fer_pipeline.mining.features import VERSION
from fer_pipeline.networks.cards import CARD, read_card
from fer_pipeline.networks.checkpoints import WEIGHTS


class Config(Settings):
    """Which sets are embedded, and how."""

    sets: tuple[PlainName, ...] = ()
    batch_size: Annotated[int, Field(ge=1)] = 256
    fuse: bool = True  # fold batch norms into convolutions on a CPU
    allowed_failures: Annotated[int, Field(ge=0)] = 0  # shards that may fail before the stage does


def run(
    config: Config, *, name: str, faces: Path, model: Path, out: Path, store: Path, resources: Resources
) -> Summary:
    """Embeds one set. Shards that fail are reported after the others are finished."""
    shards = shard_paths(faces)
    card = read_card(model)
    if read_classes(faces) != card.classes:
        raise DataError(
            f"{faces} holds the classes {', '.join(read_classes(faces))}, but {model} was trained with "
            f"{', '.join(card.classes)}; rerun align or train_primitive"
        )
    weights = file_sha256(model / WEIGHTS)
    cache = Store(store)
    keys = [shard_key(config, path, weights=weights, card=(model / CARD).read_bytes()) for path in shards]
    jobs = [
        Job(key=key, faces=path, name=str(path)) for key, path in zip(keys, shards, strict=True) if not cache.has(key)
    ]
    with progress(f"embed {name}", sum(open_shard(job.faces).metadata.num_rows for job in jobs), "faces") as advance:
        failures = embed_shards(
            jobs,
            model=model,
            weights=weights,
            store=store,
            batch_size=config.batch_size,
            fuse=config.fuse,
            resources=resources,
            advance=advance,
        )
    if len(failures) > config.allowed_failures:
        more = f" (and {len(failures) - 1} more of {len(shards)} shards)" if len(failures) > 1 else ""
        raise DataError(f"embed {failures[0]}{more}; finished shards are kept, rerun embed after mending")
    failed = [key for key in keys if not cache.has(key)]
    if len(failed) == len(keys):
        raise DataError(f"embed {failures[0]}; no shard of {name} could be embedded")
    with replacing_folder(out) as folder:
        for number, key in enumerate(keys):
            if key not in failed:
                cache.link(key, folder / f"part-{number:05d}.arrow")
    rows = sum(open_shard(path).metadata.num_rows for key, path in zip(keys, shards, strict=True) if key not in failed)
    counts: dict[str, int | float] = {
        "faces": rows,
        "shards": len(shards),
        "reused": len(shards) - len(jobs),
        "failed": len(failed),
    }
    line = f"{name}: {rows:,} faces in {len(shards)} shards, {counts['reused']} reused"
    return Summary("embed", line, counts, tuple(failures))


def shard_key(config: Config, faces: Path, *, weights: str, card: bytes) -> str:
    """The fingerprint of all that a shard's bytes depend on. Neither its place nor its name is part of it."""
    settings = {"fuse": config.fuse, "batch_size": config.batch_size}
    return fingerprint("embed", VERSION, file_sha256(faces), weights, card, settings)
