"""Plan the shards of a data set: map labels to classes, decide where shards end, and key them by what they depend on.

Labels are mapped by name, the settings' own mapping first, and checked before any picture is read. The plan is a stream
of jobs; a worker calls `load_maker` once and makes shards with it.
"""

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from fer_pipeline.alignment import shards
from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, alignment_fingerprint
from fer_pipeline.alignment.shards import LabelledSample, ShardFormat, ShardJob, make_shard
from fer_pipeline.artifacts.census import RejectedSample
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.expressions import canonical
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.plugins import load
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings, validate
from fer_pipeline.sharding.jobs import Advance, Job, Maker

Cut = Literal["ids", "count"]
DROPPED = "label_dropped"
OUTSIDE = "label_outside_classes"


class LabelMap:
    """Maps one data set's labels to class numbers, or to the reason for which a picture is dropped."""

    def __init__(self, dataset: DatasetSettings, classes: Sequence[str], *, name: str) -> None:
        self._by_class: dict[str, int | str] = {canonical(known): number for number, known in enumerate(classes)}
        self._by_word: dict[str, int | str] = {}
        for word, wanted in dataset.classes.items():
            number = DROPPED if wanted is None else self._by_class.get(canonical(wanted))
            if number is None:
                raise ConfigError(
                    f"datasets.{name}.classes maps {word!r} to {wanted!r}, which is none of the classes "
                    f"{', '.join(classes)}; map it to one of them or to null"
                )
            self._by_word[word.strip()] = number

    def look_up(self, word: str | None) -> int | str | None:
        """Returns the class number of a source's word (None for none), or the reason for dropping the picture."""
        if word is None:
            return None
        return self._by_word.get(word.strip(), self._by_class.get(canonical(word), OUTSIDE))


@dataclass(frozen=True)
class AlignmentPlan:
    """What is aligned and how: all that a worker must know."""

    name: str
    dataset: DatasetSettings
    alignment: AlignmentSettings
    format: ShardFormat
    rows: int
    cut: Cut

    def load_adapter(self) -> tuple[ModuleType, Any]:
        """Returns the adapter's module and its checked options."""
        module = load("fer_pipeline.datasets", self.dataset.adapter)
        return module, validate(module.Options, self.dataset.options, where=f"datasets.{self.name}.options")

    def samples(self) -> Iterator[Sample]:
        """Yields the samples, each with its split; DataError where a split is not known."""
        module, options = self.load_adapter()
        for sample in module.samples(self.dataset.path, options):
            if sample.split is None and self.dataset.split is None:
                raise DataError(
                    f"data set {self.name!r}: the sample {sample.id!r} has no split; set "
                    f"datasets.{self.name}.split, or tell the adapter in its options where the splits stand"
                )
            yield sample if sample.split is not None else replace(sample, split=self.dataset.split)


def check_samples(plan: AlignmentPlan, labels: LabelMap) -> int:
    """Returns the number of samples; ids that come twice and labels outside the classes are a DataError."""
    outside: Counter[str] = Counter()
    hashes = array("Q")
    for sample in plan.samples():
        hashes.append(hash_id(sample.id))
        if labels.look_up(sample.label) == OUTSIDE:
            outside[str(sample.label)] += 1
    if len(hashes) == 0:
        raise DataError(
            f"data set {plan.name!r} has no sample in {plan.dataset.path}; correct datasets.{plan.name}.path"
        )
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
    return len(hashes)


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


def plan_jobs(
    plan: AlignmentPlan, labels: LabelMap, hashes: InputHashes, rejected: list[RejectedSample]
) -> Iterator[Job[ShardJob]]:
    """Yields a job for each shard, in the adapter's order; samples without a class of theirs are put into `rejected`.

    A job is named by the set and the shard's file in it: `<set>/<split>/part-<number>.parquet`.
    """
    adapter, _ = plan.load_adapter()
    waiting: dict[str, list[LabelledSample]] = defaultdict(list)
    numbers: Counter[str] = Counter()

    def next_job(split: str) -> Job[ShardJob]:
        samples = tuple(waiting.pop(split))
        shard = ShardJob(plan.name, split, numbers[split], samples)
        numbers[split] += 1
        key = fingerprint(  # of all that the bytes depend on; where the data set lies is no part of it
            "align",
            shards.VERSION,
            alignment_fingerprint(plan.alignment),
            (plan.dataset.adapter, getattr(adapter, "VERSION", 1), plan.dataset.options),
            (shard.dataset, shard.split, plan.format.classes, plan.format.metadata(plan.alignment)),
            [(one.sample.id, one.label, one.sample.subject, one.source, one.sample.key) for one in samples],
            hashes.hash_samples([labelled.sample for labelled in samples]),
        )
        return Job(key, shard.name, len(samples), shard, folder=True)

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


def load_maker(plan: AlignmentPlan, device: str) -> Maker:
    """Loads the networks and the adapter in a worker and returns what makes a shard."""
    module, options = plan.load_adapter()
    aligner = Aligner(plan.alignment, device=device)

    def make(job: Job[ShardJob], folder: Path, advance: Advance) -> None:
        read = partial(module.read, options=options)
        make_shard(folder, job.payload, format=plan.format, aligner=aligner, read=read, advance=advance)

    return make


def _source(plan: AlignmentPlan, sample: Sample) -> str:
    path = plan.dataset.path
    root = path if path.is_dir() else path.parent
    place = sample.path.relative_to(root) if sample.path.is_relative_to(root) else Path(sample.path.name)
    source = place.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    inside = sample.key or (str(sample.offset) if sample.length >= 0 else "")
    return f"{source}#{inside}" if inside else source
