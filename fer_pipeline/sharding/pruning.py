"""What of a store is of no use any more: shards that no last run used, states and temporary files of dead runs.

A shard stays while the last run of any stage and set used it, and while the run that made it has not ended: a killed
run is to find what it finished. The outputs do not suffer: they hold links of their own.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fer_pipeline.artifacts.checksums import files_of
from fer_pipeline.artifacts.store import Store

DAYS_OF_STATES = 14  # an unfinished training that nobody went on with for so long
SECONDS_A_DAY = 86400.0


@dataclass(frozen=True)
class Useless:
    """One thing to remove; `size` in bytes, `held` those that an output or DVC's cache keeps on the disk."""

    path: Path
    kind: Literal["shard", "state", "leftover"]
    size: int
    held: int


def useless(store: Store) -> list[Useless]:
    """All that can be removed while nobody works on the store."""
    found = [_judged(path, "shard") for path in _shards(store)]
    found += [_judged(path, "state") for path in _states(store)]
    return found + [_judged(path, "leftover") for path in (*temporary_files(store.root), *_lone_seals(store))]


def remove(store: Store, found: Useless) -> None:
    """Removes one of them."""
    if found.kind == "shard":
        store.remove(found.path.name)
    else:
        _remove(found.path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sweep(root: Path) -> None:
    """Removes the temporary files of runs that died; only for one who is alone on the store."""
    for path in temporary_files(root):
        _remove(path)


def temporary_files(root: Path) -> Iterator[Path]:
    """What runs left that were killed while they wrote."""
    for pattern in (".*.tmp", "shards/*/.*.tmp", "shards/*/.*.old", "seals/*/.*.tmp", "*/.*.tmp", "states/*/*/.*.tmp"):
        yield from root.glob(pattern)


def _shards(store: Store) -> Iterator[Path]:
    uses = store.uses()
    if not uses:
        return  # no run has told yet what it uses
    used = frozenset[str]().union(*(keys for _, keys in uses.values()))
    for path in sorted(store.root.glob("shards/*/*")):
        if path.name.startswith(".") or path.name in used:
            continue
        seal = store.seal(path.name)
        ended, _ = uses.get(seal.origin.owner if seal else "", (None, None))
        if seal is None or (ended is not None and seal.made <= ended):
            yield path


def _states(store: Store) -> Iterator[Path]:
    for path in sorted(store.root.glob("states/*/*")):
        newest = max([path.stat().st_mtime, *(file.stat().st_mtime for file in path.rglob("*"))])
        if store.shard(path.name).exists() or time.time() - newest > DAYS_OF_STATES * SECONDS_A_DAY:
            yield path


def _lone_seals(store: Store) -> Iterator[Path]:
    for path in sorted(store.root.glob("seals/*/*.json")):
        if not path.name.startswith(".") and not store.shard(path.stem).exists():
            yield path


def _judged(path: Path, kind: Literal["shard", "state", "leftover"]) -> Useless:
    states = [file.stat() for file in files_of(path).values()]
    held = sum(state.st_size for state in states if state.st_nlink > 1)
    return Useless(path, kind, sum(state.st_size for state in states), held)
