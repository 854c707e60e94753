"""Read where the numbers come from: the counts of `align`, `dvc.lock`, `params.yaml` and the commit.

What is in a data set comes from the counts that `align` leaves in `reports/census/<set>.json`; no split is opened for
it. The stage `report` itself is left out, since its entry in `dvc.lock` is that of the run before.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fer_pipeline.artifacts.census import SplitCensus, most_frequent, read_census, read_shared
from fer_pipeline.artifacts.contents import SharedCounts
from fer_pipeline.artifacts.locked_stages import read_stages, run_git
from fer_pipeline.core.settings import ProjectSettings

NO_GIT = "not a git checkout"
HASHES = ("md5", "etag", "checksum")


@dataclass(frozen=True)
class DataSet:
    """One aligned data set, what it is used for, what became of its pictures, and what splits share with `train`."""

    name: str
    role: str
    classes: tuple[str, ...]
    splits: dict[str, SplitCensus]
    shared: dict[str, SharedCounts]

    @property
    def rejected(self) -> list[tuple[str, int]]:
        """Rejected pictures by reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for split in self.splits.values():
            counts.update(split.rejected)
        return [*most_frequent(counts).items()]

    def counts(self, split: str) -> dict[str, int | None]:
        """Return the faces of every class in a split, None where no face of the split has a label."""
        census = self.splits[split]
        labelled = census.unlabelled < census.faces
        return {label: census.labels.get(label, 0) if labelled else None for label in self.classes}


class Stage(NamedTuple):
    """One stage as it ran; what it reads and writes are paths with their hashes, "" where DVC keeps none."""

    name: str
    command: str
    reads: dict[str, str]
    writes: dict[str, str]


class Lineage(NamedTuple):
    """Everything that is known of where the numbers come from."""

    commit: str
    stages: tuple[Stage, ...]
    params: str


def load_census(folder: Path, project: ProjectSettings) -> list[DataSet]:
    """Load the data sets that were aligned, in the order of the settings."""
    uses = {"anchor": (project.anchor,), "training": (project.train,), "pool": project.pools, "target": project.targets}
    paths = {name: path for name in project.datasets if (path := folder / f"{name}.json").exists()}
    roles = {name: ", ".join(use for use, names in uses.items() if name in names) or "unused" for name in paths}
    return [
        DataSet(name, roles[name], project.classes, read_census(path), read_shared(path))
        for name, path in paths.items()
    ]


def read_lineage(root: Path, project: ProjectSettings) -> Lineage:
    """Read what there is; a project without `dvc.lock` has no stages, one without settings gets those understood."""
    params = root / "params.yaml"
    if params.exists():
        settings = params.read_text(encoding="utf-8", errors="replace")
    else:
        settings = yaml.safe_dump(project.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return Lineage(read_commit(root), load_stages(root / "dvc.lock"), settings)


def load_stages(lock: Path) -> tuple[Stage, ...]:
    """Load the stages of `dvc.lock`, in its order."""
    return tuple(_stage(name, entry) for name, entry in read_stages(lock).items() if name != "report")


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    command = entry.get("cmd") or ""
    text = " && ".join(command) if isinstance(command, list) else command
    reads, writes = (
        {item["path"]: str(next((item[kind] for kind in HASHES if kind in item), "")) for item in items or ()}
        for items in (entry.get("deps"), entry.get("outs"))
    )
    return Stage(name, text, reads, writes)


def read_commit(root: Path) -> str:
    """Return the checked-out commit of `root`, marked where tracked files other than `dvc.lock` differ from it."""
    head = run_git(root, "rev-parse", "HEAD")
    changed = run_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    if head is None or changed is None:
        return NO_GIT
    return f"{head.strip()}, with uncommitted changes" if changed.strip() else head.strip()
