"""Read where every number comes from: `dvc.lock`, `params.yaml` and the commit.

The stage `report` itself is left out, since its entry in `dvc.lock` is that of the run before.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import ProjectSettings

NO_GIT = "not a git checkout"


@dataclass(frozen=True)
class Item:
    """A file or folder with its hash; empty where DVC keeps none."""

    path: str
    digest: str


@dataclass(frozen=True)
class Stage:
    """One stage as it ran."""

    name: str
    command: str
    reads: tuple[Item, ...]
    writes: tuple[Item, ...]


@dataclass(frozen=True)
class Lineage:
    """Everything that is known of where the numbers come from."""

    commit: str
    stages: tuple[Stage, ...]
    params: str


def read_lineage(root: Path, project: ProjectSettings) -> Lineage:
    """Read what there is; a project without `dvc.lock` has no stages, one without settings gets those understood."""
    params = root / "params.yaml"
    settings = (
        params.read_text(encoding="utf-8", errors="replace")
        if params.exists()
        else yaml.safe_dump(project.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    return Lineage(commit=read_commit(root), stages=read_stages(root / "dvc.lock"), params=settings)


def read_stages(lock: Path) -> tuple[Stage, ...]:
    """Read the stages of `dvc.lock`, in its order; a damaged file is a DataError."""
    if not lock.exists():
        return ()
    try:
        stages = (yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
        return tuple(_stage(name, entry) for name, entry in stages.items() if name != "report")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{lock} cannot be read ({reason}); restore it or run: dvc repro") from None


def read_commit(root: Path) -> str:
    """Return the checked-out commit of `root`, marked where tracked files other than `dvc.lock` differ from it."""
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return NO_GIT
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return f"{head}, with uncommitted changes" if changed else head


def _git(root: Path, *words: str) -> str:
    try:
        process = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return process.stdout.strip()


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    command = entry.get("cmd", "")
    text = " && ".join(map(str, command)) if isinstance(command, list) else str(command)
    return Stage(str(name), text, _items(entry.get("deps", [])), _items(entry.get("outs", [])))


def _items(entries: list[dict[str, Any]]) -> tuple[Item, ...]:
    hashes = ("md5", "etag", "checksum")
    digests = [next((entry[kind] for kind in hashes if kind in entry), "") for entry in entries]
    return tuple(Item(str(entry["path"]), str(digest)) for entry, digest in zip(entries, digests, strict=True))
