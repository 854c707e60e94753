"""Where every number comes from: `dvc.lock`, `params.yaml` and the commit in; one table of stages and their hashes out.

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
    size: int | None


@dataclass(frozen=True)
class Stage:
    """One stage as it ran."""

    name: str
    command: str
    reads: tuple[Item, ...]
    writes: tuple[Item, ...]
    settings: str


@dataclass(frozen=True)
class Lineage:
    """Everything that is known of where the numbers come from."""

    commit: str
    stages: tuple[Stage, ...]
    params: str


def lineage(root: Path, world: ProjectSettings) -> Lineage:
    """Reads what there is; a project without `dvc.lock` has no stages."""
    return Lineage(commit=commit(root), stages=stages(root / "dvc.lock"), params=_params(root / "params.yaml", world))


def stages(lock: Path) -> tuple[Stage, ...]:
    """The stages of `dvc.lock`, in its order."""
    if not lock.exists():
        return ()
    try:
        found = yaml.safe_load(lock.read_text(encoding="utf-8")) or {}
        return tuple(_stage(name, entry) for name, entry in found.get("stages", {}).items() if name != "report")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"{lock} cannot be read ({' '.join(str(error).split())}); restore it or run: dvc repro"
        ) from None


def commit(root: Path) -> str:
    """The checked-out commit of `root`, marked where tracked files other than `dvc.lock` differ from it."""
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return NO_GIT
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return f"{head}, with uncommitted changes" if changed else head


def _git(root: Path, *words: str) -> str:
    try:
        told = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()


def _stage(name: str, entry: dict[str, Any]) -> Stage:
    command = entry.get("cmd", "")
    return Stage(
        name=str(name),
        command=" && ".join(map(str, command)) if isinstance(command, list) else str(command),
        reads=_items(entry.get("deps", [])),
        writes=_items(entry.get("outs", [])),
        settings=yaml.safe_dump(entry["params"], sort_keys=True, allow_unicode=True) if entry.get("params") else "",
    )


def _items(entries: list[dict[str, Any]]) -> tuple[Item, ...]:
    return tuple(
        Item(
            path=str(entry["path"]),
            digest=str(next((entry[kind] for kind in ("md5", "etag", "checksum") if kind in entry), "")),
            size=entry.get("size"),
        )
        for entry in entries
    )


def _params(path: Path, world: ProjectSettings) -> str:
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    return yaml.safe_dump(world.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
