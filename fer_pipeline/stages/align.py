"""Align the raw pictures of one data set: write its faces in shards, and every rejected picture with its reason.

In: the data set through its adapter. Out: `data/faces/<set>/<split>/part-*.parquet`, `rejected.parquet` and
`summary.json` beside the splits, and `data/contents/<set>.parquet`, by which equal faces are found. Persons and equal
faces that stand in `train` and in another split are counted and warned of. Labels are mapped by name and checked before
any picture is read. A finished shard is kept in the store under its pictures' bytes, labels, settings and the versions
of the code: after a crash, or when a set gains or loses pictures anywhere, only the rest is made.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.alignment.aligner import AlignmentSettings, NoFace, SeveralFaces
from fer_pipeline.alignment.cascade import DetectionSettings
from fer_pipeline.alignment.leaks import contents_key, hash_shards, shared_with_train
from fer_pipeline.alignment.pictures import PictureSettings
from fer_pipeline.alignment.shards import AlignmentPlan, Cut, ShardFormat, ShardJob, plan_shards, write_faces
from fer_pipeline.artifacts.census import RejectedSample, SourceLabel, describe_shared, most_frequent
from fer_pipeline.artifacts.contents import CONTENTS, HASHED, read_contents, write_contents
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_bytes
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import STORE, PlainName, ProjectSettings, Settings, Summary
from fer_pipeline.datasets._files import report_left_out
from fer_pipeline.sharding.jobs import Work
from fer_pipeline.sharding.run import make_shards


class SetChanges(Settings):
    """What may differ between sets. Size, border, grey and format may not: they would become cues of the class."""

    prealigned: bool | None = None
    no_face: NoFace | None = None
    several_faces: SeveralFaces | None = None
    pictures: PictureSettings | None = None
    detection: DetectionSettings | None = None


class Config(AlignmentSettings):
    """The section `align`."""

    format: Literal["jpeg", "png"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    shard_rows: Annotated[int, Field(ge=1)] = 4096
    cut: Cut = "ids"  # where a shard ends; by count, a lost picture moves all later shards
    hashes: bool = False  # perceptual ones in data/contents, which mine.duplicates compares
    allowed_failures: Annotated[int, Field(ge=0)] = 0  # shards that may fail before the stage does
    sets: dict[PlainName, SetChanges] = Field(default_factory=dict)

    def alignment(self, name: str) -> AlignmentSettings:
        """Returns the settings of one set."""
        own = {key: getattr(self, key) for key in AlignmentSettings.model_fields}
        changes = dict(self.sets[name]) if name in self.sets else {}
        return AlignmentSettings(**{**own, **{key: value for key, value in changes.items() if value is not None}})


def run(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    out: Path,
    census: Path | None = None,
    contents: Path | None = None,
    verify: bool = False,
    store: Path = STORE,
) -> Summary:
    """Find and align the faces of one data set.

    Args:
        name: The data set's name in the settings.
        out: Where the splits of aligned faces are written.
        census: Where a copy of the set's summary is written, so that a report need not depend on the faces.
        contents: Where it is written which picture each face is, so that equal faces are found.
        verify: Hash pictures and finished shards again that look unchanged.
        store: Where finished shards are kept.
    """
    rejected: list[RejectedSample] = []
    labels: dict[str, SourceLabel] = {}
    work = plan(config, project, name=name, store=store, verify=verify, rejected=rejected, source_labels=labels)
    result = make_shards("align", name, work, store, project.resources, config.allowed_failures, verify=verify)
    for failure in result.failures:
        shard: ShardJob = failure.job.payload
        rejected += [sample.reject(shard.split, "shard_failed") for sample in shard.samples]
    keys = {job.name.removeprefix(f"{name}/"): job.key for job in result.finished}
    shards = Store(store, owner=f"align@{name}", verify=verify)
    known = [contents_key(key, hashes=config.hashes) for key in keys.values()]
    shards.record_run([*(job.key for job in result.jobs), *known])
    hashed = hash_shards(shards, keys, name=name, hashes=config.hashes)
    shared = shared_with_train(hashed)
    with replacing_folder(out) as folder:
        folders = {file: shards.shard(key) for file, key in keys.items()}
        splits = write_faces(folder, folders, project.classes, rejected, labels, shared)
        faces = sum(split.faces for split in splits.values())
        reasons = sum((Counter(split.rejected) for split in splits.values()), Counter())
        listed = ", ".join(f"{reason} {count:,}" for reason, count in most_frequent(reasons).items())
        losses = f"{reasons.total():,} rejected" + (f" ({listed})" if listed else "")
        if faces == 0:
            raise DataError(
                f"align {name}: no face is left of {work.total:,} pictures, {losses}; correct datasets.{name} "
                f"or align in params.yaml"
            )
    if contents is not None:
        schema = HASHED if config.hashes else CONTENTS
        tables = (read_contents(path, schema) for split in hashed for path in split.paths)
        write_contents(contents, tables, schema)
    if census is not None:
        write_bytes(census, (out / "summary.json").read_bytes())
    counts: dict[str, int | float] = {"samples": work.total, "faces": faces, "rejected": reasons.total()}
    reused = f"{result.counts['reused']} of {len(result.jobs)} shards reused"
    line = f"align {name}: {work.total:,} in, {faces:,} kept, {losses}; {reused}"
    dataset = project.dataset(name)
    adapter = load("fer_pipeline.datasets", dataset.adapter)
    left_out = report_left_out(adapter, dataset.path, adapter.Options.model_validate(dataset.adapter_options()))
    warnings = (*describe_shared(name, shared), *(f"{name}: {line}" for line in left_out), *result.warnings)
    return Summary("align", line, counts | result.counts, warnings)


def plan(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    store: Path,
    verify: bool = False,
    rejected: list[RejectedSample] | None = None,
    source_labels: dict[str, SourceLabel] | None = None,
) -> Work:
    """Plans the shards of one set as jobs.

    Samples that fall into no shard are put into `rejected`, and what the source's labels mean into `source_labels`.
    """
    format = ShardFormat(project.classes, config.format, config.quality)
    settings = config.alignment(name)
    alignment = AlignmentPlan(name, project.dataset(name), settings, format, config.shard_rows, config.cut)
    hashes = InputHashes(Store(store).memory(f"align-{name}.json"), verify=verify)
    labels = {} if source_labels is None else source_labels
    return plan_shards(alignment, hashes, [] if rejected is None else rejected, labels)
