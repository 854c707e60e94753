"""Embed one set: compute the features of its aligned faces with the primitive learner, shard by shard.

Reads `data/faces/<set>/train` and `models/primitive`; writes `data/embeddings/<set>`, one shard for each shard of
faces. The anchor is embedded by the calibration model too, where the labeller was refitted: below, in `calibration`.
A finished shard stays in the store under its faces, weights and settings and is never computed again, however
often the stage is killed and however many shards join the pool. The device is no part of that key: a GPU's shard and a
CPU's differ by about what half precision cuts off.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from fer_pipeline.artifacts.faces import open_shard, shard_paths, write_parquet
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.artifacts.seed_folders import seed_folders, seeds_in
from fer_pipeline.artifacts.split import CALIBRATION
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.settings import STORE, PlainName, ProjectSettings, Settings, Summary
from fer_pipeline.embedding.features import VERSION, Precision
from fer_pipeline.embedding.shards import EmbedOptions, FacesShard, make_embedder
from fer_pipeline.networks.checkpoints import features_id
from fer_pipeline.networks.settings import CARD, read_card
from fer_pipeline.sharding.jobs import Advance, Job, Maker, Work
from fer_pipeline.sharding.run import make_shards

Payload = tuple[int, Path]  # place of the model among those that embed a set, and the faces


class Config(Settings):
    """Which sets are embedded, and how."""

    sets: tuple[PlainName, ...] = ()
    batch_size: Annotated[int, Field(ge=1)] = 256
    fuse: bool = True  # fold batch norms into convolutions
    precision: Precision = "float16"  # of a GPU's forward pass; bfloat16 where float16 overflows. A CPU takes float32
    compile: bool = False  # let torch write kernels for the network: a minute for each worker; needs a C++ compiler
    allowed_failures: Annotated[int, Field(ge=0)] = 0  # shards that may fail before the stage does


def run(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    faces: Path,
    model: Path,
    out: Path,
    verify: bool = False,
    store: Path = STORE,
) -> Summary:
    """Write the primitive learner's features of one set.

    Args:
        name: The data set's name in the settings.
        faces: A split of aligned faces.
        model: The folder of the primitive learner.
        out: Where a shard of features is written for each shard of faces.
        verify: Hash faces and finished shards again that look unchanged.
        store: Where finished shards are kept.
    """
    work = plan(config, project, name=name, faces=faces, model=model, store=store, verify=verify)
    result = make_shards("embed", name, work, store, project.resources, config.allowed_failures, verify=verify)
    finished, seeds = {job.key for job in result.finished}, seeds_in(model)
    folders = model_folders(project, name=name, model=model)
    shards = len(result.jobs) // len(folders)
    with seed_folders(out, seeds) if seeds else replacing_folder(out) as folder:
        for number, job in enumerate(result.jobs):
            if job.key in finished:
                place = folder / folders[number // shards]
                Store(store).link(job.key, place / f"part-{number % shards:05d}.arrow")
    counts: dict[str, int | float] = {"faces": sum(job.items for job in result.jobs[:shards] if job.key in finished)}
    line = f"{name}: {counts['faces']:,} faces in {len(result.jobs)} shards, {result.counts['reused']} reused"
    if seeds:
        line += f"; by the models {', '.join(folders)}"
    elif len(folders) > 1:
        line += " (half of them by the calibration model)"
    return Summary("embed", line, counts | result.counts, result.warnings)


def model_folders(project: ProjectSettings, *, name: str, model: Path) -> list[str]:
    """Returns the folders of the models that embed a set, in the folder of the primitive learner and in the output."""
    labellers = [str(seed) for seed in seeds_in(model)] or [""]
    calibrated = {own for own in labellers if name == project.anchor and (model / own / CALIBRATION).is_dir()}
    return [one for own in labellers for one in ([own, str(Path(own, CALIBRATION))] if own in calibrated else [own])]


def plan(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    faces: Path,
    model: Path,
    store: Path,
    verify: bool = False,
) -> Work:
    """Plans the jobs of one set: for each model that embeds it, one for each shard of its faces.

    Other classes than the model's are a DataError.
    """
    models = [model / folder for folder in model_folders(project, name=name, model=model)]
    shards, card = [FacesShard.read(path) for path in shard_paths(faces)], read_card(models[0])
    classes = [shard.classes for shard in shards if shard.classes]
    if classes and card.classes not in classes:
        raise DataError(
            f"{faces} holds the classes {', '.join(classes[0])}, but {model} was trained with "
            f"{', '.join(card.classes)}; rerun align or train_primitive"
        )
    crops = Counter(shard.crop for shard in shards if shard.crop is not None).most_common(1)
    crop = crops[0][0] if crops else None
    extraction = config.model_dump(include={"batch_size", "fuse", "precision", "compile"})  # what features depend on
    options = [EmbedOptions(one, features_id(one), extraction, classes=card.classes, crop=crop) for one in models]

    def jobs() -> Iterator[Job[Payload]]:
        hashed: dict[Path, str] = {}  # once for all models
        with InputHashes(Store(store).memory(f"embed-{name}.json"), verify=verify) as hashes:
            for number, one in enumerate(options):
                card_bytes = (one.model / CARD).read_bytes()
                for shard in shards:
                    sha256 = hashed.get(shard.path) or hashed.setdefault(shard.path, hashes.hash_file(shard.path))
                    key = fingerprint("embed", VERSION, sha256, one.weights, card_bytes, extraction)
                    yield Job(key, str(shard.path), shard.rows, (number, shard.path))

    total = len(models) * sum(shard.rows for shard in shards)
    return Work(jobs(), partial(make_embedders, options), part_of, unit="faces", total=total)


def make_embedders(options: Sequence[EmbedOptions], device: str) -> Maker:
    """Returns the function that embeds a shard with the model of its job; a worker holds one network at a time."""
    loaded = {0: make_embedder(options[0], device)}

    def embed(job: Job[Payload], path: Path, advance: Advance) -> None:
        number, faces = job.payload
        if number not in loaded:
            loaded.clear()
            loaded[number] = make_embedder(options[number], device)
        loaded[number](replace(job, payload=faces), path, advance)

    return embed


def part_of(job: Job[Payload], items: int, folder: Path) -> Job[Payload]:
    """Makes a job of the first faces of another, to see how long they take; their shard is written into `folder`."""
    number, path = job.payload
    first = next(open_shard(path).iter_batches(items, ["face_id", "image"]))
    faces = folder / f"{job.key}-{items}.parquet"
    write_parquet(faces, pa.Table.from_batches([first]))
    return Job(f"{job.key}-{items}", job.name, first.num_rows, (number, faces))
