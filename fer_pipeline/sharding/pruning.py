"""Find what a store no longer needs: shards that no last run used, old states and temporary files of dead runs.

A shard stays while the last run of any stage and set used it, and while the run that made it has not ended: a killed
run is to find what it finished. The outputs do not suffer: they hold links of their own.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_pipeline.artifacts.store import Store, shard_files

STATE_SECONDS = 14 * 86400.0  # after which a state counts as abandoned
TEMPORARY = (".*.tmp", "*/.*.tmp", "shards/*/.*.tmp", "shards/*/.*.old", "checksums/*/.*.tmp", "states/*/*/.*.tmp")

Kind = Literal["shard", "state", "leftover"]


@dataclass(frozen=True)
class Unused:
    """One thing to remove; `size` in bytes, `linked` those that an output or DVC's cache keeps on the disk."""

    path: Path
    kind: Kind
    size: int
    linked: int


def find_unused(store: Store) -> list[Unused]:
    """Finds all that can be removed while nobody works on the store."""
    runs = store.last_runs()
    used = frozenset[str]().union(*(keys for _, keys in runs.values()))

    def is_unused(shard: Path) -> bool:
        checksums = store.checksums(shard.name)
        ended, _ = runs.get(checksums.origin.owner if checksums else "", (None, None))
        return shard.name not in used and (checksums is None or (ended is not None and checksums.created <= ended))

    def is_abandoned(state: Path) -> bool:
        newest = max(file.stat().st_mtime for file in (state, *state.rglob("*")))
        return store.shard(state.name).exists() or time.time() - newest > STATE_SECONDS

    checksums = sorted(store.root.glob("checksums/*/[!.]*.json"))
    paths: dict[Kind, list[Path]] = {
        # Where no run has recorded yet what it uses, all shards stay.
        "shard": [path for path in sorted(store.root.glob("shards/*/[!.]*")) if runs and is_unused(path)],
        "state": [path for path in sorted(store.root.glob("states/*/*")) if is_abandoned(path)],
        "leftover": _temporary_files(store.root) + [path for path in checksums if not store.shard(path.stem).exists()],
    }
    unused = []
    for kind, group in paths.items():
        for path in group:
            files = [file.stat() for file in shard_files(path).values()]
            linked = sum(file.st_size for file in files if file.st_nlink > 1)
            unused.append(Unused(path, kind, sum(file.st_size for file in files), linked))
    return unused


def remove(store: Store, unused: Unused) -> None:
    """Removes one of them."""
    store.remove(unused.path.name) if unused.kind == "shard" else _remove(unused.path)


def remove_temporary_files(root: Path) -> None:
    """Removes what runs left that were killed while they wrote; only for one who is alone on the store."""
    for path in _temporary_files(root):
        _remove(path)


def _temporary_files(root: Path) -> list[Path]:
    return [path for pattern in TEMPORARY for path in root.glob(pattern)]


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
