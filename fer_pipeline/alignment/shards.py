"""Make a shard: align samples and write their faces as Parquet, beside the manifest of all samples.

`VERSION` is raised when other bytes are written for the same crops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, Crop
from fer_pipeline.alignment.manifest import FACES, write_manifest
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.artifacts.census import RejectedSample
from fer_pipeline.artifacts.faces import encode, face_schema, write_parquet
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample

VERSION = 1

ReadPicture = Callable[[Sample], bytes]


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """A sample with its class number (None without a label) and where it comes from, relative to its data set."""

    sample: Sample
    label: int | None
    source: str

    def reject(self, split: str, reason: str) -> RejectedSample:
        """Returns the sample's row of `rejected.parquet`."""
        return RejectedSample(self.sample.id, self.source, split, reason)


@dataclass(frozen=True)
class ShardFormat:
    """What all shards of a set share."""

    classes: tuple[str, ...]
    format: Literal["jpeg", "png"]
    quality: int

    def metadata(self, alignment: AlignmentSettings) -> dict[str, Any]:
        """Returns what the shards say of themselves: what `predict` must know to make crops of the same kind."""
        chosen = alignment.model_dump(mode="json", include={"border", "crop", "detection", "grey", "pictures"})
        return {**chosen, "format": self.format, "quality": self.quality}


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made: its place in the set and its samples."""

    dataset: str
    split: str
    number: int
    samples: tuple[LabelledSample, ...]

    @property
    def name(self) -> str:
        """The set and the shard's file in it."""
        return f"{self.dataset}/{self.split}/part-{self.number:05d}.parquet"


def make_shard(
    folder: Path,
    job: ShardJob,
    *,
    format: ShardFormat,
    aligner: Aligner,
    read: ReadPicture,
    advance: Callable[[int], None],
) -> None:
    """Fills an empty folder with the shard; `advance` is called with 1 for every picture."""
    results = aligner.align(_read(read, one.sample) for one in job.samples)
    rows: list[dict[str, Any]] = []
    rejected: list[RejectedSample] = []
    for one, result in zip(job.samples, results, strict=True):
        if isinstance(result, Rejection):
            rejected.append(one.reject(job.split, result.reason))
        else:
            rows.append(_row(one, result, job, format))
        advance(1)
    schema = face_schema(format.classes, **format.metadata(aligner.settings))
    write_parquet(folder / FACES, pa.Table.from_pylist(rows, schema=schema))
    write_manifest(folder, [row["label"] for row in rows], rejected)


def _read(read: ReadPicture, sample: Sample) -> bytes | Rejection:
    try:
        return read(sample)
    except (DataError, OSError):
        return Rejection("unreadable")


def _row(one: LabelledSample, crop: Crop, job: ShardJob, format: ShardFormat) -> dict[str, Any]:
    return {
        "face_id": f"{job.dataset}/{one.sample.id}",
        "image": {"bytes": encode(crop.image, format=format.format, quality=format.quality), "path": None},
        "label": one.label,
        "subject": one.sample.subject,
        "split": job.split,
        "landmarks": None if crop.landmarks is None else crop.landmarks.ravel().tolist(),
        "score": crop.score,
        "source": one.source,
    }
