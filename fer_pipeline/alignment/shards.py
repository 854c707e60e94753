"""Plan the shards of a data set, make each, and gather them in a set's folder.

Labels are checked before any picture is read. The plan is a stream of jobs, keyed by what their bytes depend on; a
worker calls `load_maker` once and makes shards with it: the faces as Parquet, and beside them the manifest of all
samples. The manifest records what became of them: labels of faces, by class number (-1 without a label), and rejected
samples. It stands beside the faces in the store, so that no rejected sample is lost where the shard is reused.
`VERSION` is raised when other bytes are written for the same crops.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, alignment_fingerprint
from fer_pipeline.alignment.pictures import Rejection
from fer_pipeline.alignment.samples import OUTSIDE, LabelMap, load_adapter, read_samples
from fer_pipeline.artifacts.census import RejectedSample, SourceLabel, SplitCensus, most_frequent, write_census
from fer_pipeline.artifacts.contents import SharedCounts
from fer_pipeline.artifacts.faces import encode, face_schema, write_parquet
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.artifacts.store import link_file
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, refuse_damage, write_json
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings
from fer_pipeline.datasets._files import TooLargeError
from fer_pipeline.sharding.jobs import Advance, Job, Maker, Work

VERSION = 1
FACES = "faces.parquet"
MANIFEST = "manifest.json"
Cut = Literal["ids", "count"]


@dataclass(frozen=True, slots=True)
class LabelledSample:
    """A sample with its class number (None without a label) and where it comes from, relative to its data set."""

    sample: Sample
    label: int | None
    source: str

    def reject(self, split: str, reason: str) -> RejectedSample:
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
        return f"{self.dataset}/{self.split}/part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class AlignmentPlan:
    """What is aligned and how: all that a worker must know."""

    name: str
    dataset: DatasetSettings
    alignment: AlignmentSettings
    format: ShardFormat
    rows: int
    cut: Cut

    def samples(self) -> Iterator[Sample]:
        """Yields the samples, each with its split, as `read_samples` does."""
        return read_samples(self.dataset, self.format.classes, name=self.name)


def check_samples(plan: AlignmentPlan, labels: LabelMap) -> tuple[int, dict[str, SourceLabel]]:
    """Returns the number of samples, and what the source's labels mean.

    Raises:
        DataError: An id comes twice, or a label is outside the classes.
    """
    words: Counter[str] = Counter()
    without = 0
    hashes = array("Q")
    for sample in plan.samples():
        hashes.append(hash_id(sample.id))
        if sample.label is None:
            without += 1
        else:
            words[sample.label] += 1
    if len(hashes) == 0:
        raise DataError(
            f"data set {plan.name!r} has no sample in {plan.dataset.path}; correct datasets.{plan.name}.path"
        )
    if without and labels.look_up(None) is not None:
        words[""] += without
    source_labels = labels.describe(words)
    outside = {word: one.samples for word, one in source_labels.items() if one.meaning == OUTSIDE}
    if outside and not plan.dataset.drop_unknown:
        counts = ", ".join(f"{word} {count:,}" for word, count in sorted(outside.items()))
        raise DataError(
            f"data set {plan.name!r} has labels outside the classes: {counts}; map or drop them in "
            f"datasets.{plan.name}.classes, or set datasets.{plan.name}.drop_unknown: true"
        )
    values, numbers = np.unique(hashes, return_counts=True)
    if len(values) < len(hashes):
        twice = set(values[numbers > 1].tolist())
        first = next(sample.id for sample in plan.samples() if hash_id(sample.id) in twice)
        raise DataError(
            f"data set {plan.name!r}: {len(twice):,} sample ids come more than once, the first is {first!r}; "
            f"every picture needs an id of its own"
        )
    return len(hashes), source_labels


def hash_id(sample_id: str) -> int:
    """Returns 64 bits of a sample's id, the same on every machine."""
    # 8 bytes an id instead of a set of strings: a pool may have millions.
    return int.from_bytes(hashlib.blake2b(sample_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def ends_shard(sample_id: str, length: int, *, rows: int, cut: Cut) -> bool:
    """Tells whether a shard of `length` samples ends with this one; `rows` is the length that is aimed at.

    By count, a lost picture moves every later one into another place and every later shard is made
    again. By ids, a shard ends where the content says so: after a sample whose hash falls in a set of one in `rows`.
    Where samples come, go or change, the shards before stay, and those after fall into step again within a few shards.
    Source: content-defined chunking (Muthitacharoen et al., A Low-bandwidth Network File System, 2001), with their
    minimum and maximum.
    """
    if cut == "count":
        return length == rows
    return length >= 2 * rows or (length >= rows // 4 and hash_id(sample_id) < 2**64 // rows)


def plan_shards(
    plan: AlignmentPlan, hashes: InputHashes, rejected: list[RejectedSample], source_labels: dict[str, SourceLabel]
) -> Work:
    """Checks all samples and plans a job for each shard, in the adapter's order, named by its file under the set.

    What the source's labels mean is put into `source_labels` at once, and samples without a class of theirs into
    `rejected` when the jobs are taken.
    """
    labels = LabelMap(plan.dataset, plan.format.classes, name=plan.name)
    total, meanings = check_samples(plan, labels)
    source_labels |= meanings
    jobs = _plan_jobs(plan, labels, hashes, rejected)
    return Work(jobs, partial(load_maker, plan), shorten_job, unit="pictures", total=total)


def _plan_jobs(
    plan: AlignmentPlan, labels: LabelMap, hashes: InputHashes, rejected: list[RejectedSample]
) -> Iterator[Job[ShardJob]]:
    adapter, _ = load_adapter(plan.dataset, name=plan.name)
    waiting: dict[str, list[LabelledSample]] = defaultdict(list)
    numbers: Counter[str] = Counter()

    def next_job(split: str) -> Job[ShardJob]:
        shard = ShardJob(plan.name, split, numbers[split], tuple(waiting.pop(split)))
        numbers[split] += 1
        key = fingerprint(  # of all that the bytes depend on; where the data set lies is no part of it
            "align",
            VERSION,
            alignment_fingerprint(plan.alignment),
            (plan.dataset.adapter, getattr(adapter, "VERSION", 1), plan.dataset.options),
            (shard.dataset, shard.split, plan.format.classes, plan.format.metadata(plan.alignment)),
            [(one.sample.id, one.label, one.sample.subject, one.source, one.sample.key) for one in shard.samples],
            hashes.hash_samples([labelled.sample for labelled in shard.samples]),
        )
        return Job(key, shard.name, len(shard.samples), shard, folder=True)

    with hashes:
        for sample in plan.samples():
            split, label, source = str(sample.split), labels.look_up(sample.label), _source(plan, sample)
            if isinstance(label, str):
                rejected.append(RejectedSample(sample.id, source, split, label))
                continue
            waiting[split].append(LabelledSample(sample, label, source))
            if ends_shard(sample.id, len(waiting[split]), rows=plan.rows, cut=plan.cut):
                yield next_job(split)
        for split in sorted(waiting):
            yield next_job(split)


def shorten_job(job: Job[ShardJob], items: int, folder: Path) -> Job[ShardJob]:
    """Returns a job of the first samples of another, to see how long they take; it needs no file in `folder`."""
    samples = job.payload.samples[:items]
    return replace(job, key=f"{job.key}-{items}", items=len(samples), payload=replace(job.payload, samples=samples))


def _source(plan: AlignmentPlan, sample: Sample) -> str:
    path = plan.dataset.path
    root = path if path.is_dir() else path.parent
    place = sample.path.relative_to(root) if sample.path.is_relative_to(root) else Path(sample.path.name)
    source = place.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    inside = sample.key or (str(sample.offset) if sample.length >= 0 else "")
    return f"{source}#{inside}" if inside else source


def load_maker(plan: AlignmentPlan, device: str) -> Maker:
    """Loads the networks and the adapter in a worker and returns what makes a shard."""
    module, options = load_adapter(plan.dataset, name=plan.name)
    aligner = Aligner(plan.alignment, device=device)

    def make(job: Job[ShardJob], folder: Path, advance: Advance) -> None:
        read = partial(module.read, options=options)
        make_shard(folder, job.payload, format=plan.format, aligner=aligner, read=read, advance=advance)

    return make


class Manifest(BaseModel):
    """What became of the samples of one shard: faces by class number (-1 without a label), and rejected samples."""

    labels: dict[int, Annotated[int, Field(gt=0)]]
    rejected: list[RejectedSample]


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
        except TooLargeError:
            return Rejection("too_large_a_file")
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
    folder: Path,
    shards: Mapping[str, Path],
    classes: Sequence[str],
    rejected: Sequence[RejectedSample],
    source_labels: Mapping[str, SourceLabel],
    shared: Mapping[str, SharedCounts],
) -> dict[str, SplitCensus]:
    """Links the shards that hold a face into a set's folder, and writes and returns what became of all samples.

    Args:
        folder: Of the set.
        shards: The shards' folders in the store, in order, by the file's name in the set (`<split>/part-*.parquet`).
        classes: Names by class number.
        rejected: Samples that were rejected before any shard, or with a whole one.
        source_labels: What the labels of the source mean.
        shared: What each other split has in common with `train`.
    """
    labels: defaultdict[str, Counter[int]] = defaultdict(Counter)
    rows = list(rejected)
    for file, shard in shards.items():
        content = read_json(shard / MANIFEST)
        with refuse_damage(shard / MANIFEST, "is no list of a shard's samples", "run align again with --verify"):
            manifest = Manifest.model_validate(content)
        if manifest.labels:
            link_file(shard / FACES, folder / file)
        labels[file.partition("/")[0]].update(manifest.labels)
        rows += manifest.rejected
    rows.sort(key=lambda row: row.split)
    splits = {}
    for split in sorted({*labels, *(row.split for row in rows)}):
        counts, reasons = labels[split], Counter(row.reason for row in rows if row.split == split)
        splits[split] = SplitCensus(
            samples=counts.total() + reasons.total(),
            faces=counts.total(),
            labels={name: counts[number] for number, name in enumerate(classes)},
            unlabelled=counts[-1],
            rejected=most_frequent(reasons),
        )
    write_census(folder, splits, rows, source_labels, shared)
    return splits
