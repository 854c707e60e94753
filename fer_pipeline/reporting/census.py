"""Read what is in every data set from the counts that `align` leaves in `reports/census/<set>.json`.

No split is opened for it. `rejected.parquet` names every rejected picture; here they are counted by reason.
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


def load_census(folder: Path, project: ProjectSettings) -> list[DataSet]:
    """Load the data sets that were aligned, in the order of the settings."""
    paths = {name: folder / f"{name}.json" for name in project.datasets}
    there = {name: path for name, path in paths.items() if path.exists()}
    return [DataSet(name, describe_role(name, project), _splits(path, project)) for name, path in there.items()]


def describe_role(name: str, project: ProjectSettings) -> str:
    """Say in words what a data set is used for."""
    uses = {"anchor": (project.anchor,), "training": (project.train,), "pool": project.pools, "target": project.targets}
    return ", ".join(use for use, names in uses.items() if name in names) or "unused"


def _splits(path: Path, project: ProjectSettings) -> tuple[Split, ...]:
    return tuple(
        Split(
            name=name,
            samples=split.samples,
            faces=split.faces,
            counts={
                label: split.labels.get(label, 0) if split.unlabelled < split.faces else None
                for label in project.classes
            },
            unlabelled=split.unlabelled,
            rejected=dict(split.rejected),
        )
        for name, split in read_census(path).items()
    )
