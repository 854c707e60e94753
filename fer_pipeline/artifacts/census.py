"""Write and read what became of the samples of one data set: counts as JSON, rejected samples as Parquet.

`summary.json` stands beside the splits in `data/faces/<set>`, with a copy at `reports/census/<set>.json`, so that a
report need not depend on the faces; it tells what each label of the source was taken for. `rejected.parquet` names
every sample without a face: `sample_id`, `source` (file relative to the data set), `split` and `reason`, all strings.
`shared` says of each split beside `train` what it has in common with it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pydantic import TypeAdapter

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.contents import SharedCounts
from fer_pipeline.core.files import read_json, refuse_damage, write_json


class RejectedSample(NamedTuple):
    """A row of `rejected.parquet`."""

    sample_id: str
    source: str
    split: str
    reason: str


class SourceLabel(NamedTuple):
    """How many samples of the source have a label, and its `meaning`: a class, or the reason why they are dropped."""

    samples: int
    meaning: str


@dataclass(frozen=True)
class SplitCensus:
    """The counts of one split: all samples, faces, faces by class and without a label, rejected samples by reason."""

    samples: int
    faces: int
    labels: Mapping[str, int]
    unlabelled: int
    rejected: Mapping[str, int]


def write_census(
    folder: Path,
    splits: Mapping[str, SplitCensus],
    rejected: Sequence[RejectedSample],
    source_labels: Mapping[str, SourceLabel],
    shared: Mapping[str, SharedCounts],
) -> None:
    """Writes `summary.json` and `rejected.parquet` into a folder; mappings are by split, `source_labels` by label."""
    schema = pa.schema([(name, pa.string()) for name in RejectedSample._fields])
    rows = pa.Table.from_pylist([row._asdict() for row in rejected], schema=schema)
    write_rows(folder / "rejected.parquet", rows)
    content = {
        "samples": sum(split.samples for split in splits.values()),
        "faces": sum(split.faces for split in splits.values()),
        "rejected": most_frequent(Counter(row.reason for row in rejected)),
        "source_labels": {label: one._asdict() for label, one in source_labels.items()},
        "splits": {name: asdict(split) for name, split in splits.items()},
        "shared": {name: asdict(counts) for name, counts in shared.items()},
    }
    write_json(folder / "summary.json", content)


def read_census(path: Path) -> dict[str, SplitCensus]:
    """Reads the counts of every split, by its name; a file of another form is a DataError."""
    content = read_json(path)
    with refuse_damage(path, "holds no counts of an aligned data set", "run: dvc repro align"):
        return dict(sorted(TypeAdapter(dict[str, SplitCensus]).validate_python(content["splits"]).items()))


def read_shared(path: Path) -> dict[str, SharedCounts]:
    """Reads what each split has in common with `train`, by its name; nothing from a file that is older than that."""
    content = read_json(path)
    with refuse_damage(path, "holds no counts of an aligned data set", "run: dvc repro align"):
        return TypeAdapter(dict[str, SharedCounts]).validate_python(content.get("shared", {}))


def describe_shared(name: str, shared: Mapping[str, SharedCounts]) -> Iterator[str]:
    """Yields what is wrong where splits of a set share persons or faces, and what to do."""
    for split, counts in shared.items():
        if counts.persons:
            who = "1 person stands" if counts.persons == 1 else f"{counts.persons:,} persons stand"
            yield (
                f"{name}: {who} in train and {split}, so figures on {split} are not those of strangers; "
                f"split the set by person (the csv adapter's options.split names the column that says who is where)"
            )
        if counts.faces:
            which = f"1 face of {split} is" if counts.faces == 1 else f"{counts.faces:,} faces of {split} are"
            yield (
                f"{name}: {which} equal to faces of train, so figures on {split} count what was learned by heart; "
                f"take these pictures out of one of the two"
            )


def most_frequent(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns all counts, the most frequent first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
