"""One shard of samples in, a folder with the aligned faces (Parquet) and the account of every sample (JSON) out.

The account says how many samples came in, how many faces of which class were kept, and which samples were rejected for
which reason, so that nothing is lost where a shard is reused.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fer_pipeline.alignment.aligner import Aligner, Crop
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.artifacts.faces import encode, face_schema, write_parquet
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_json
from fer_pipeline.core.samples import Sample

VERSION = 1
FACES = "faces.parquet"
ACCOUNT = "account.json"

Read = Callable[[Sample], bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample with its class number (None without a label) and where it comes from, relative to its data set."""

    sample: Sample
    label: int | None
    source: str


@dataclass(frozen=True)
class ShardSettings:
    """What all shards of a set share."""

    name: str
    classes: tuple[str, ...]
    format: Literal["jpeg", "png"]
    quality: int


@dataclass(frozen=True)
class ShardJob:
    """One shard to be made: its key in the store, its place in the set, its samples."""

    key: str
    split: str
    number: int
    entries: tuple[Entry, ...]

    @property
    def file(self) -> str:
        """Where the shard stands in the set's folder."""
        return f"{self.split}/part-{self.number:05d}.parquet"


def make_shard(
    folder: Path,
    job: ShardJob,
    *,
    settings: ShardSettings,
    aligner: Aligner,
    read: Read,
    advance: Callable[[int], None],
) -> None:
    """Fills an empty folder with the shard; `advance` hears of every picture."""
    results = aligner.align(_bytes(read, entry.sample) for entry in job.entries)
    rows: list[dict[str, Any]] = []
    rejected: list[dict[str, str]] = []
    for entry, result in zip(job.entries, results, strict=True):
        if isinstance(result, Rejection):
            rejected.append(rejection(entry, split=job.split, reason=result.reason))
        else:
            rows.append(_row(entry, result, split=job.split, settings=settings))
        advance(1)
    schema = face_schema(settings.classes, crop=aligner.settings.crop, **_about(aligner, settings))
    write_parquet(folder / FACES, pa.Table.from_pylist(rows, schema=schema))
    write_json(folder / ACCOUNT, account(job.entries, rows, rejected))


def rejection(entry: Entry, *, split: str, reason: str) -> dict[str, str]:
    """One line of `rejected.parquet`."""
    return {"sample_id": entry.sample.id, "source": entry.source, "split": split, "reason": reason}


def account(
    entries: Sequence[Entry], rows: Sequence[dict[str, Any]], rejected: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """What became of the samples; the keys of `labels` are class numbers, -1 without a label."""
    labels = Counter(-1 if row["label"] is None else row["label"] for row in rows)
    return {
        "samples": len(entries),
        "faces": len(rows),
        "labels": {str(label): count for label, count in sorted(labels.items())},
        "rejected": list(rejected),
    }


def _bytes(read: Read, sample: Sample) -> bytes | Rejection:
    try:
        return read(sample)
    except (DataError, OSError):
        return Rejection("unreadable")


def _row(entry: Entry, crop: Crop, *, split: str, settings: ShardSettings) -> dict[str, Any]:
    return {
        "face_id": f"{settings.name}/{entry.sample.id}",
        "image": {"bytes": encode(crop.image, format=settings.format, quality=settings.quality), "path": None},
        "label": entry.label,
        "subject": entry.sample.subject,
        "split": split,
        "landmarks": None if crop.landmarks is None else crop.landmarks.ravel().tolist(),
        "score": crop.score,
        "source": entry.source,
    }


def _about(aligner: Aligner, settings: ShardSettings) -> dict[str, Any]:
    """What `predict` must know to make crops of the same kind."""
    chosen = aligner.settings.model_dump(mode="json", include={"border", "grey", "pictures", "detection"})
    return {**chosen, "format": settings.format, "quality": settings.quality}
