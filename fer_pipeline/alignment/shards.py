"""Make a shard: align samples and write their faces as Parquet, beside the manifest of all samples.

The manifest records what became of them: labels of faces, by class number (-1 without a label), and rejected samples.
It stands beside the faces in the store, so that no rejected sample is lost where the shard is reused. `VERSION` is
raised when other bytes are written for the same crops.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.artifacts.census import RejectedSample, SplitCensus, count_reasons, write_census
from fer_pipeline.artifacts.faces import encode, face_schema, write_parquet
from fer_pipeline.artifacts.store import link_file
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_json
from fer_pipeline.core.samples import Sample

VERSION = 1
FACES = "faces.parquet"
MANIFEST = "manifest.json"


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
    read: Callable[[Sample], bytes],
    advance: Callable[[int], None],
) -> None:
    """Fills an empty folder with the shard; `advance` is called with 1 for every picture."""

    def read_or_reject(sample: Sample) -> bytes | Rejection:
        try:
            return read(sample)
        except (DataError, OSError):
            return Rejection("unreadable")

    results = aligner.align(read_or_reject(labelled.sample) for labelled in job.samples)
    rows: list[dict[str, Any]] = []
    rejected: list[RejectedSample] = []
    for labelled, result in zip(job.samples, results, strict=True):
        advance(1)
        if isinstance(result, Rejection):
            rejected.append(labelled.reject(job.split, result.reason))
            continue
        image = encode(result.image, format=format.format, quality=format.quality)
        row = {
            "face_id": f"{job.dataset}/{labelled.sample.id}",
            "image": {"bytes": image, "path": None},
            "label": labelled.label,
            "subject": labelled.sample.subject,
            "split": job.split,
            "landmarks": None if result.landmarks is None else result.landmarks.ravel().tolist(),
            "score": result.score,
            "source": labelled.source,
        }
        rows.append(row)
    schema = face_schema(format.classes, **format.metadata(aligner.settings))
    write_parquet(folder / FACES, pa.Table.from_pylist(rows, schema=schema))
    labels = Counter("-1" if row["label"] is None else str(row["label"]) for row in rows)
    write_json(folder / MANIFEST, {"labels": labels, "rejected": [sample._asdict() for sample in rejected]})


def write_faces(
    folder: Path, shards: Mapping[str, Path], classes: Sequence[str], rejected: Sequence[RejectedSample]
) -> dict[str, SplitCensus]:
    """Links the shards that hold a face into a set's folder, and writes and returns what became of all samples.

    Args:
        folder: Of the set.
        shards: The shards' folders in the store, in order, by the file's name in the set (`<split>/part-*.parquet`).
        classes: Names by class number.
        rejected: Samples that were rejected before any shard, or with a whole one.
    """
    labels: defaultdict[str, Counter[int]] = defaultdict(Counter)
    rows = list(rejected)
    for file, shard in shards.items():
        manifest = read_json(shard / MANIFEST)
        if manifest["labels"]:
            link_file(shard / FACES, folder / file)
        labels[file.partition("/")[0]].update({int(label): count for label, count in manifest["labels"].items()})
        rows += [RejectedSample(**row) for row in manifest["rejected"]]
    rows.sort(key=lambda row: row.split)
    splits = {}
    for split in sorted({*labels, *(row.split for row in rows)}):
        counts, reasons = labels[split], count_reasons(row for row in rows if row.split == split)
        splits[split] = SplitCensus(
            samples=counts.total() + sum(reasons.values()),
            faces=counts.total(),
            labels={name: counts[number] for number, name in enumerate(classes)},
            unlabelled=counts[-1],
            rejected=reasons,
        )
    write_census(folder, splits, rows)
    return splits
