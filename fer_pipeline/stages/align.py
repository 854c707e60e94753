"""Raw pictures of one data set in, aligned faces in shards out, with every rejected picture and its reason.

In: the data set through its adapter. Out: `data/faces/<set>/<split>/part-*.parquet`, and `rejected.parquet` and
`summary.json` beside the splits. Labels are mapped by name and checked before any picture is read. A finished shard is
kept in the store under its pictures' bytes, labels and settings: after a crash, or when a set gains or loses pictures
anywhere, only the rest is made.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.alignment.accounts import account_for, count_reasons, write_set
from fer_pipeline.alignment.aligner import AlignmentSettings
from fer_pipeline.alignment.cascade import DetectionSettings
from fer_pipeline.alignment.cuts import Cut
from fer_pipeline.alignment.labels import LabelMap
from fer_pipeline.alignment.pictures import PictureSettings
from fer_pipeline.alignment.planning import Cutting, SetPlan, begin, check, cut, part_of
from fer_pipeline.alignment.selection import NoFace, SeveralFaces
from fer_pipeline.alignment.shards import ShardJob, ShardSettings, rejection
from fer_pipeline.artifacts.input_hashes import Contents
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_bytes
from fer_pipeline.core.settings import STORE, PlainName, ProjectSettings, Settings
from fer_pipeline.core.summary import Summary
from fer_pipeline.sharding.jobs import Job, Work
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
    cut: Cut = "ids"  # where a shard ends; by count, a picture that is lost moves all later shards
    allowed_failures: Annotated[int, Field(ge=0)] = 0  # shards that may fail before the stage does
    sets: dict[PlainName, SetChanges] = Field(default_factory=dict)

    def alignment(self, name: str) -> AlignmentSettings:
        """The settings of one set."""
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
    verify: bool = False,
    store: Path = STORE,
) -> Summary:
    """Find and align the faces of one data set.

    Args:
        config: The section `align`.
        project: What all stages share.
        name: The data set's name in the settings.
        out: Where the splits of aligned faces are written.
        census: Where a copy of the set's summary is written, so that a report need not depend on the faces.
        verify: Hash pictures and finished shards again that look unchanged.
        store: Where finished shards are kept.
    """
    cutting = Cutting()
    planned = plan(config, project, name=name, store=store, verify=verify, cutting=cutting)
    made = make_shards(
        "align",
        name,
        planned.jobs,
        planned.begin,
        store=store,
        resources=project.resources,
        unit=planned.unit,
        total=planned.total,
        allowed_failures=config.allowed_failures,
        preload=__name__,
        verify=verify,
    )
    early = cutting.early
    for failure in made.failures:
        split = failure.job.payload.split
        early[split] += [rejection(entry, split=split, reason="shard_failed") for entry in failure.job.payload.entries]
    finished = {job.key for job in made.finished}
    done = [shard for shard in cutting.shards if shard.key in finished]
    kept = Store(store)
    splits = account_for(kept, done, early)
    faces = sum(split.faces for split in splits.values())
    reasons = count_reasons([line for split in splits.values() for line in split.rejected])
    told = f"{sum(reasons.values()):,} rejected" + (
        f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.items())})" if reasons else ""
    )
    if faces == 0:
        raise DataError(
            f"align {name}: no face is left of {planned.total:,} pictures, {told}; look at the data set's settings"
        )
    with replacing_folder(out) as folder:
        write_set(folder, kept, done, splits, project.classes)
    if census is not None:
        write_bytes(census, (out / "summary.json").read_bytes())
    counts: dict[str, int | float] = {"samples": planned.total, "faces": faces, "rejected": sum(reasons.values())}
    line = (
        f"align {name}: {planned.total:,} in, {faces:,} kept, {told}; {made.reused} of {len(made.jobs)} shards reused"
    )
    return Summary("align", line, counts | made.counts, made.warnings)


def plan(
    config: Config,
    project: ProjectSettings,
    *,
    name: str,
    store: Path,
    verify: bool = False,
    cutting: Cutting | None = None,
) -> Work:
    """The shards of one set, as jobs; `cutting` keeps what is met while they are cut."""
    dataset, classes = project.dataset(name), project.classes
    shards = ShardSettings(name, classes, config.format, config.quality)
    chosen = SetPlan(name, dataset, config.alignment(name), shards, config.shard_rows, config.cut)
    labels = LabelMap(dataset, classes, name=name)
    total = check(chosen, labels)
    contents = Contents(Store(store).memory(f"align-{name}.json"), verify=verify)

    def jobs() -> Iterator[Job[ShardJob]]:
        with contents:
            yield from cut(chosen, labels, contents, Cutting() if cutting is None else cutting)

    return Work(jobs(), partial(begin, chosen), part_of, unit="pictures", total=total)
