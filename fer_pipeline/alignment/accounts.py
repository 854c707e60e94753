"""The accounts of shards in, the account of a whole set out: `summary.json` and `rejected.parquet` beside its faces."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_pipeline.alignment.shards import ACCOUNT, FACES, ShardJob
from fer_pipeline.artifacts.store import Store, link_file
from fer_pipeline.core.files import read_json, replacing, write_json

SCHEMA = pa.schema([(name, pa.string()) for name in ("sample_id", "source", "split", "reason")])


@dataclass
class SplitAccount:
    """What became of the samples of one split; `labels` are the kept faces by class number, -1 without a label."""

    faces: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    rejected: list[dict[str, str]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.faces + len(self.rejected)

    def add(self, account: dict[str, Any]) -> None:
        """Adds one shard's account."""
        self.faces += account["faces"]
        self.labels.update({int(label): count for label, count in account["labels"].items()})
        self.rejected.extend(account["rejected"])

    def as_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """What `summary.json` says of a split."""
        return {
            "samples": self.samples,
            "faces": self.faces,
            "labels": {name: self.labels[number] for number, name in enumerate(classes)},
            "unlabelled": self.labels[-1],
            "rejected": count_reasons(self.rejected),
        }


def account_for(
    store: Store, jobs: Sequence[ShardJob], early: dict[str, list[dict[str, str]]]
) -> dict[str, SplitAccount]:
    """The splits in order; `early` are the samples of each that were rejected before any shard, or with a whole one."""
    splits = {split: SplitAccount(rejected=list(early.get(split, []))) for split in sorted({*early, *_splits(jobs)})}
    for job in jobs:
        splits[job.split].add(read_json(store.shard(job.key) / ACCOUNT))
    return splits


def write_set(
    folder: Path, store: Store, jobs: Sequence[ShardJob], splits: dict[str, SplitAccount], classes: Sequence[str]
) -> None:
    """Links the shards that hold a face and writes what became of all samples."""
    for job in jobs:
        if read_json(store.shard(job.key) / ACCOUNT)["faces"]:
            link_file(store.shard(job.key) / FACES, folder / job.file)
    rejected = [line for split in splits.values() for line in split.rejected]
    with replacing(folder / "rejected.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rejected, schema=SCHEMA), temporary, compression="zstd")
    content = {
        "samples": sum(split.samples for split in splits.values()),
        "faces": sum(split.faces for split in splits.values()),
        "rejected": count_reasons(rejected),
        "splits": {name: split.as_json(classes) for name, split in splits.items()},
    }
    write_json(folder / "summary.json", content)


def count_reasons(rejected: Sequence[dict[str, str]]) -> dict[str, int]:
    """The rejected samples by reason, the most frequent first."""
    return dict(sorted(Counter(line["reason"] for line in rejected).items(), key=lambda pair: (-pair[1], pair[0])))


def _splits(jobs: Sequence[ShardJob]) -> set[str]:
    return {job.split for job in jobs}
