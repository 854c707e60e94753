"""A data set and its settings in; its shards, cut and keyed, out as jobs, and what makes them in a worker.

Labels are mapped by name and checked before any picture is read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, alignment_fingerprint
from fer_pipeline.alignment.cuts import Cut, ends_shard, id_hash
from fer_pipeline.alignment.labels import OUTSIDE, Label, LabelMap
from fer_pipeline.alignment.shards import VERSION, Entry, ShardJob, ShardSettings, make_shard, rejection
from fer_pipeline.artifacts.input_hashes import Contents
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.plugins import load
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings, validate
from fer_pipeline.sharding.jobs import Advance, Job, Maker

Rejected = dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class SetPlan:
    """What is aligned and how: all that a worker must know."""

    name: str
    dataset: DatasetSettings
    alignment: AlignmentSettings
    shards: ShardSettings
    rows: int
    cut: Cut

    def adapter(self) -> tuple[ModuleType, Any]:
        """The adapter's module and its checked options."""
        module = load("fer_pipeline.datasets", self.dataset.adapter)
        return module, validate(module.Options, self.dataset.options, where=f"datasets.{self.name}.options")

    def samples(self) -> Iterator[Sample]:
        """The samples, each with its split."""
        module, options = self.adapter()
        for sample in module.samples(self.dataset.path, options):
            if sample.split is None and self.dataset.split is None:
                raise DataError(
                    f"data set {self.name!r}: the sample {sample.id!r} has no split; set "
                    f"datasets.{self.name}.split, or tell the adapter in its options where the splits stand"
                )
            yield sample if sample.split is not None else replace(sample, split=self.dataset.split)


@dataclass(frozen=True)
class Cutting:
    """The shards of a set as they are cut, without their samples, and what was rejected before any shard."""

    shards: list[ShardJob] = field(default_factory=list)
    early: Rejected = field(default_factory=lambda: defaultdict(list))


def check(plan: SetPlan, labels: LabelMap) -> int:
    """The number of samples; ids that come twice and labels outside the classes are refused before any work."""
    outside: Counter[str] = Counter()
    hashes = np.fromiter((_watched(sample, labels, outside) for sample in plan.samples()), dtype=np.uint64)
    if len(hashes) == 0:
        raise DataError(
            f"data set {plan.name!r} has no sample in {plan.dataset.path}; correct datasets.{plan.name}.path"
        )
    if outside and not plan.dataset.drop_unknown:
        found = ", ".join(f"{word} {count:,}" for word, count in sorted(outside.items()))
        raise DataError(
            f"data set {plan.name!r} has labels outside the classes: {found}; map or drop them in "
            f"datasets.{plan.name}.classes, or set datasets.{plan.name}.drop_unknown: true"
        )
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) < len(hashes):
        twice = set(values[counts > 1].tolist())
        first = next(sample.id for sample in plan.samples() if id_hash(sample.id) in twice)
        raise DataError(
            f"data set {plan.name!r}: {len(twice):,} sample ids come more than once, the first is {first!r}; "
            f"every picture needs an id of its own"
        )
    return len(hashes)


def _watched(sample: Sample, labels: LabelMap, outside: Counter[str]) -> int:
    if labels.read(sample.label).reason == OUTSIDE:
        outside[str(sample.label)] += 1
    return id_hash(sample.id)


def cut(plan: SetPlan, labels: LabelMap, contents: Contents, cutting: Cutting) -> Iterator[Job[ShardJob]]:
    """A job for each shard, in the adapter's order; `cutting` keeps what is met on the way."""
    for shard in _shards(plan, labels, contents, cutting.early):
        cutting.shards.append(replace(shard, entries=()))
        yield Job(shard.key, f"{plan.name}/{shard.file}", len(shard.entries), shard, folder=True)


def part_of(job: Job[ShardJob], items: int, folder: Path) -> Job[ShardJob]:
    """A job of the first samples of another, to see how long they take; it needs no file in `folder`."""
    entries = job.payload.entries[:items]
    return replace(job, key=f"{job.key}-{items}", items=len(entries), payload=replace(job.payload, entries=entries))


def _shards(plan: SetPlan, labels: LabelMap, contents: Contents, early: Rejected) -> Iterator[ShardJob]:
    """The shards of every split; samples without a place in the classes are put into `early`."""
    waiting: dict[str, list[Entry]] = defaultdict(list)
    numbers: Counter[str] = Counter()

    def shard(split: str) -> ShardJob:
        entries = tuple(waiting.pop(split))
        numbers[split] += 1
        return ShardJob(_key(plan, split, entries, contents), split, numbers[split] - 1, entries)

    for sample in plan.samples():
        split = str(sample.split)
        label = labels.read(sample.label)
        entry = _entry(plan, sample, label)
        if label.reason is not None:
            early[split].append(rejection(entry, split=split, reason=label.reason))
            continue
        waiting[split].append(entry)
        if ends_shard(sample.id, len(waiting[split]), rows=plan.rows, cut=plan.cut):
            yield shard(split)
    for split in sorted(waiting):
        yield shard(split)


def _entry(plan: SetPlan, sample: Sample, label: Label) -> Entry:
    path = plan.dataset.path
    root = path if path.is_dir() else path.parent
    place = sample.path.relative_to(root) if sample.path.is_relative_to(root) else Path(sample.path.name)
    source = place.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    inside = sample.key or (str(sample.offset) if sample.length >= 0 else "")
    return Entry(sample, label.number, f"{source}#{inside}" if inside else source)


def _key(plan: SetPlan, split: str, entries: Sequence[Entry], contents: Contents) -> str:
    """The fingerprint of all that a shard's bytes depend on; where the data set lies is no part of it."""
    told = [(entry.sample.id, entry.label, entry.sample.subject, entry.source) for entry in entries]
    reading = (plan.dataset.adapter, plan.dataset.options, [entry.sample.key for entry in entries])
    encoding = (
        plan.shards.format,
        plan.shards.quality,
        plan.shards.classes,
        plan.alignment.border,
        plan.alignment.grey,
    )
    bytes_read = contents.of([entry.sample for entry in entries])
    how = alignment_fingerprint(plan.alignment)
    return fingerprint("align", VERSION, plan.name, split, told, reading, encoding, how, bytes_read)


def begin(plan: SetPlan, device: str) -> Maker:
    """In a worker: the networks and the adapter, loaded once."""
    module, options = plan.adapter()
    aligner = Aligner(plan.alignment, device=device)

    def read(sample: Sample) -> bytes:
        return module.read(sample, options)

    def make(job: Job[ShardJob], folder: Path, advance: Advance) -> None:
        make_shard(folder, job.payload, settings=plan.shards, aligner=aligner, read=read, advance=advance)

    return make
