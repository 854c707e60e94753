"""Record what became of the samples of a shard, and put the shards of a set and their counts together.

A shard's manifest stands beside its faces in the store, so that no rejected sample is lost where the shard is reused.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_pipeline.artifacts.census import RejectedSample, SplitCensus, count_reasons, write_census
from fer_pipeline.artifacts.store import link_file
from fer_pipeline.core.files import read_json, write_json

FACES = "faces.parquet"
MANIFEST = "manifest.json"


def write_manifest(folder: Path, labels: Sequence[int | None], rejected: Sequence[RejectedSample]) -> None:
    """Writes the manifest of a shard whose faces have these class numbers (None without a label)."""
    counts = Counter("-1" if label is None else str(label) for label in labels)
    write_json(folder / MANIFEST, {"labels": counts, "rejected": [row._asdict() for row in rejected]})


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
