"""Find what a store no longer needs: shards that no last run used, old states and temporary files of dead runs.

A shard stays while the last run of any stage and set used it, and while the run that made it has not ended: a killed
run is to find what it finished. The outputs do not suffer: they hold links of their own.
"""

import shutil
import time
from collections.abc import Iterable, Iterator
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
    leftovers = (*_temporary_files(store.root), *_checksums_without_shard(store))
    paths: dict[Kind, Iterable[Path]] = {"shard": _shards(store), "state": _states(store), "leftover": leftovers}
    return [_measure(path, kind) for kind, found in paths.items() for path in found]


def remove(store: Store, unused: Unused) -> None:
    """Removes one of them."""
    if unused.kind == "shard":
        store.remove(unused.path.name)
    else:
        _remove(unused.path)


def remove_temporary_files(root: Path) -> None:
    """Removes what runs left that were killed while they wrote; only for one who is alone on the store."""
    for path in _temporary_files(root):
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _temporary_files(root: Path) -> Iterator[Path]:
    for pattern in TEMPORARY:
        yield from root.glob(pattern)


def _shards(store: Store) -> Iterator[Path]:
    runs = store.last_runs()
    if not runs:
        return  # no run has recorded yet what it uses
    used = frozenset[str]().union(*(keys for _, keys in runs.values()))
    for path in sorted(store.root.glob("shards/*/[!.]*")):
        if path.name not in used:
            checksums = store.checksums(path.name)
            ended, _ = runs.get(checksums.origin.owner if checksums else "", (None, None))
            if checksums is None or (ended is not None and checksums.created <= ended):
                yield path


def _states(store: Store) -> Iterator[Path]:
    for path in sorted(store.root.glob("states/*/*")):
        newest = max(file.stat().st_mtime for file in (path, *path.rglob("*")))
        if store.shard(path.name).exists() or time.time() - newest > STATE_SECONDS:
            yield path


def _checksums_without_shard(store: Store) -> Iterator[Path]:
    for path in sorted(store.root.glob("checksums/*/[!.]*.json")):
        if not store.shard(path.stem).exists():
            yield path


def _measure(path: Path, kind: Kind) -> Unused:
    states = [file.stat() for file in shard_files(path).values()]
    linked = sum(state.st_size for state in states if state.st_nlink > 1)
    return Unused(path, kind, sum(state.st_size for state in states), linked)
