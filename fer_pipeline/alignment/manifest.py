"""Record what became of the samples of a shard, and put the shards of a set and their counts together.

A shard's manifest stands beside its faces in the store, so that no rejected sample is lost where the shard is reused.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_pipeline.artifacts.census import RejectedSample, SplitCensus, count_reasons, write_census
from fer_pipeline.artifacts.store import link_file
from fer_pipeline.core.files import read_json, write_json

FACES = "faces.parquet"
MANIFEST = "manifest.json"


def write_manifest(folder: Path, labels: Sequence[int | None], rejected: Sequence[RejectedSample]) -> None:
    """Writes the manifest of a shard whose faces have these class numbers (None without a label)."""
    counts = Counter(-1 if label is None else label for label in labels)
    content = {
        "labels": {str(label): count for label, count in counts.items()},
        "rejected": [row._asdict() for row in rejected],
    }
    write_json(folder / MANIFEST, content)


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
    labels: dict[str, Counter[int]] = {row.split: Counter() for row in rejected}
    rejected_in = {split: [row for row in rejected if row.split == split] for split in labels}
    for file, shard in shards.items():
        split = file.partition("/")[0]
        manifest = read_json(shard / MANIFEST)
        counts = {int(label): count for label, count in manifest["labels"].items()}
        if counts:
            link_file(shard / FACES, folder / file)
        labels.setdefault(split, Counter()).update(counts)
        rejected_in.setdefault(split, []).extend(RejectedSample(**row) for row in manifest["rejected"])
    splits = {
        split: SplitCensus(
            samples=counts.total() + len(rejected_in[split]),
            faces=counts.total(),
            labels={name: counts[number] for number, name in enumerate(classes)},
            unlabelled=counts[-1],
            rejected=count_reasons(rejected_in[split]),
        )
        for split, counts in sorted(labels.items())
    }
    write_census(folder, splits, [row for split in splits for row in rejected_in[split]])
    return splits
