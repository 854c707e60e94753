"""What is in every data set: the account that `align` leaves in `reports/census/<set>.json` in, counts out.

No split is opened for it. `rejected.parquet` beside it names every rejected picture; here they are counted by reason.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.artifacts.census import read_census
from fer_pipeline.core.settings import ProjectSettings


@dataclass(frozen=True)
class Split:
    """What became of the pictures of one split; the counts of a split without any label are None."""

    name: str
    samples: int
    faces: int
    counts: dict[str, int | None]
    unlabelled: int
    rejected: dict[str, int]


@dataclass(frozen=True)
class DataSet:
    """One aligned data set and what it is used for."""

    name: str
    role: str
    splits: tuple[Split, ...]

    @property
    def rejected(self) -> list[tuple[str, int]]:
        """Rejected pictures by reason, the most frequent first."""
        counted: Counter[str] = Counter()
        for split in self.splits:
            counted.update(split.rejected)
        return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))


def census(folder: Path, world: ProjectSettings) -> list[DataSet]:
    """The data sets that were aligned, in the order of the settings."""
    paths = {name: folder / f"{name}.json" for name in world.datasets}
    return [DataSet(name, role(name, world), _splits(path, world)) for name, path in paths.items() if path.exists()]


def role(name: str, world: ProjectSettings) -> str:
    """What a data set is used for, in words."""
    uses = [("anchor", (world.anchor,)), ("training", (world.train,)), ("pool", world.pools), ("target", world.targets)]
    return ", ".join(word for word, names in uses if name in names) or "unused"


def _splits(path: Path, world: ProjectSettings) -> tuple[Split, ...]:
    return tuple(
        Split(
            name=name,
            samples=split.samples,
            faces=split.faces,
            counts={
                label: split.labels.get(label, 0) if split.unlabelled < split.faces else None for label in world.classes
            },
            unlabelled=split.unlabelled,
            rejected=dict(split.rejected),
        )
        for name, split in read_census(path).items()
    )
