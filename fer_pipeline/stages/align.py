"""Raw pictures of one data set in, aligned faces in shards out, with every rejected picture and its reason.

In: the data set through its adapter. Out: `data/faces/<set>/<split>/part-*.parquet`, and `rejected.parquet` and
`summary.json` beside the splits. Labels are mapped by name and checked before any picture is read. A finished shard is
kept in the store under its pictures' bytes, labels and settings: after a crash, or when a set grows at its end, only
the rest is made.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fer_pipeline.alignment.accounts import account_for, count_reasons, write_set
from fer_pipeline.alignment.aligner import Aligner, AlignmentSettings, alignment_fingerprint
from fer_pipeline.alignment.cascade import DetectionSettings
from fer_pipeline.alignment.contents import Contents
from fer_pipeline.alignment.labels import OUTSIDE, Label, LabelMap
from fer_pipeline.alignment.pictures import PictureSettings
from fer_pipeline.alignment.selection import NoFace, SeveralFaces
from fer_pipeline.alignment.shards import VERSION, Entry, ShardJob, ShardSettings, make_shard, rejection
from fer_pipeline.alignment.workers import spread
from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import replacing_folder, write_bytes
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.plugins import load
from fer_pipeline.core.progress import progress
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import DatasetSettings, PlainName, Resources, Settings, validate
from fer_pipeline.core.summaries import Summary
from fer_pipeline.networks.devices import resolve_device

Rejected = dict[str, list[dict[str, str]]]


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
    allowed_failures: Annotated[int, Field(ge=0)] = 0  # shards that may fail before the stage does
    sets: dict[PlainName, SetChanges] = Field(default_factory=dict)

    def alignment(self, name: str) -> AlignmentSettings:
        """The settings of one set."""
        own = {key: getattr(self, key) for key in AlignmentSettings.model_fields}
        changes = dict(self.sets[name]) if name in self.sets else {}
        return AlignmentSettings(**{**own, **{key: value for key, value in changes.items() if value is not None}})


@dataclass(frozen=True)
class _Plan:
    """What is aligned and how: all that a worker must know."""

    name: str
    dataset: DatasetSettings
    alignment: AlignmentSettings
    shards: ShardSettings
    store: Path
    device: str

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


def run(
    config: Config,
    *,
    name: str,
    dataset: DatasetSettings,
    classes: Sequence[str],
    out: Path,
    store: Path,
    resources: Resources,
    census: Path | None = None,
    verify: bool = False,
) -> Summary:
    """Aligns one set. `census` takes a copy of its account, so that a report need not depend on the faces themselves;
    `verify` reads files again whose hashes are remembered by size, time and inode."""
    shards = ShardSettings(name, tuple(classes), config.format, config.quality)
    plan = _Plan(name, dataset, config.alignment(name), shards, store, str(resolve_device(resources.device)))
    labels = LabelMap(dataset, classes, name=name)
    total = _check(plan, labels)
    kept = Store(store)
    contents = Contents(kept.memory(f"align-{name}.json"), verify=verify)
    early: Rejected = defaultdict(list)
    jobs: list[ShardJob] = []
    reused = 0
    failures: dict[str, str] = {}

    def missing(advance: Callable[[int], None]) -> Iterator[ShardJob]:
        nonlocal reused
        for job in _jobs(plan, labels, contents, early, rows=config.shard_rows):
            jobs.append(replace(job, entries=()))
            if kept.has(job.key):
                reused += 1
                advance(len(job.entries))
            else:
                yield job

    with progress(f"align {name}", total, "pictures") as advance:
        for job, failure in spread(
            missing(advance), begin=partial(_begin, plan), workers=resources.workers, preload=__name__
        ):
            advance(len(job.entries))
            if failure is not None:
                failures[job.file] = f"{name}/{job.file}: {failure}"
                early[job.split] += [rejection(entry, split=job.split, reason="shard_failed") for entry in job.entries]
    contents.save()
    if len(failures) > config.allowed_failures:
        more = f" (and {len(failures) - 1} more of {len(jobs)} shards)" if len(failures) > 1 else ""
        raise DataError(f"align {next(iter(failures.values()))}{more}; finished shards are kept, rerun after mending")
    done = [job for job in jobs if job.file not in failures]
    splits = account_for(kept, done, early)
    faces = sum(split.faces for split in splits.values())
    reasons = count_reasons([line for split in splits.values() for line in split.rejected])
    told = f"{sum(reasons.values()):,} rejected" + (
        f" ({', '.join(f'{reason} {count:,}' for reason, count in reasons.items())})" if reasons else ""
    )
    if faces == 0:
        raise DataError(f"align {name}: no face is left of {total:,} pictures, {told}; look at the data set's settings")
    with replacing_folder(out) as folder:
        write_set(folder, kept, done, splits, classes)
    if census is not None:
        write_bytes(census, (out / "summary.json").read_bytes())
    counts: dict[str, int | float] = {"samples": total, "faces": faces, "rejected": sum(reasons.values())}
    counts |= {"shards": len(jobs), "reused": reused, "failed": len(failures)}
    line = f"align {name}: {total:,} in, {faces:,} kept, {told}; {reused} of {len(jobs)} shards reused"
    return Summary("align", line, counts, tuple(failures.values()))


def _check(plan: _Plan, labels: LabelMap) -> int:
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
        first = next(sample.id for sample in plan.samples() if _hash(sample.id) in twice)
        raise DataError(
            f"data set {plan.name!r}: {len(twice):,} sample ids come more than once, the first is {first!r}; "
            f"every picture needs an id of its own"
        )
    return len(hashes)


def _watched(sample: Sample, labels: LabelMap, outside: Counter[str]) -> int:
    if labels.read(sample.label).reason == OUTSIDE:
        outside[str(sample.label)] += 1
    return _hash(sample.id)


def _hash(text: str) -> int:
    # 8 bytes an id instead of a set of strings: a pool may have millions.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _jobs(plan: _Plan, labels: LabelMap, contents: Contents, early: Rejected, *, rows: int) -> Iterator[ShardJob]:
    """The shards of every split in the adapter's order; samples without a place in the classes are put into `early`."""
    waiting: dict[str, list[Entry]] = defaultdict(list)
    numbers: Counter[str] = Counter()

    def job(split: str) -> ShardJob:
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
        if len(waiting[split]) == rows:
            yield job(split)
    for split in sorted(waiting):
        yield job(split)


def _entry(plan: _Plan, sample: Sample, label: Label) -> Entry:
    path = plan.dataset.path
    root = path if path.is_dir() else path.parent
    place = sample.path.relative_to(root) if sample.path.is_relative_to(root) else Path(sample.path.name)
    source = place.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    inside = sample.key or (str(sample.offset) if sample.length >= 0 else "")
    return Entry(sample, label.number, f"{source}#{inside}" if inside else source)


def _key(plan: _Plan, split: str, entries: Sequence[Entry], contents: Contents) -> str:
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


def _begin(plan: _Plan) -> Callable[[ShardJob], str | None]:
    """In a worker: the networks and the adapter, loaded once."""
    module, options = plan.adapter()
    aligner = Aligner(plan.alignment, device=plan.device)
    store = Store(plan.store)

    def read(sample: Sample) -> bytes:
        return module.read(sample, options)

    def work(job: ShardJob) -> str | None:
        try:
            store.make_folder(
                job.key, lambda folder: make_shard(folder, job, settings=plan.shards, aligner=aligner, read=read)
            )
        except Exception as error:  # one shard's fault is told; it must not cost the others
            return f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None

    return work
