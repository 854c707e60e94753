"""Remove from the shard store what it no longer needs: old shards and states, temporary files of dead runs.

A shard stays while the last run of any stage and set used it, and while no run of its stage and set has been recorded
since it was made: a killed run is to find what it finished. The outputs do not suffer: they hold links of their own.
"""

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

from fer_pipeline.artifacts.store import Store, shard_files
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import remove
from fer_pipeline.core.settings import STORE
from fer_pipeline.sharding.locks import lock_exclusively, temporary_files

Kind = Literal["shard", "state", "leftover"]
STATE_SECONDS = 14 * 86400.0  # after which a state counts as abandoned
KINDS: dict[Kind, str] = {
    "shard": "shards of no last run",
    "state": "states of no use",
    "leftover": "leftovers of dead runs",
}


def run(*, store: Path = STORE, dry_run: bool = False) -> str:
    """Remove finished shards that no last run uses, and what dead runs left.

    Args:
        store: Where finished shards and the states of unfinished work are kept.
        dry_run: Tell what would be removed, and remove nothing.
    """
    if not any((store / folder).is_dir() for folder in ("shards", "states", "memory")):
        raise DataError(f"{store} is no store of finished shards; name it with --store")
    with lock_exclusively(store):
        unused = find_unused(Store(store))
        for file in store.glob("states/**/*") if not dry_run else ():
            if file.stat().st_mtime > time.time():  # of a clock that was ahead: it ages from now on
                os.utime(file)
        num_shards = len(list(store.glob("shards/*/[!.]*")))
        for one in unused if not dry_run else ():
            Store(store).remove(one.path.name) if one.kind == "shard" else remove(one.path)
    sizes = {kind: [one.size for one in unused if one.kind == kind] for kind in KINDS}
    kinds = [(text, sizes[kind]) for kind, text in KINDS.items() if sizes[kind]]
    parts = [f"{len(one):,} {text} ({size_of(sum(one))})" for text, one in kinds]
    linked = sum(one.linked for one in unused)
    more = f"; {size_of(linked)} more are held by outputs or DVC's cache" if linked else ""
    freed = size_of(sum(one.size for one in unused) - linked)
    verb = "would be removed" if dry_run else "removed"
    rest = num_shards - len(sizes["shard"])
    return f"prune: {', '.join(parts) or 'nothing'} {verb}, {freed} freed{more}; {rest:,} shards kept"


class Unused(NamedTuple):
    """One thing to remove; `size` in bytes, `linked` those that an output or DVC's cache keeps on the disk."""

    path: Path
    kind: Kind
    size: int
    linked: int


def find_unused(store: Store) -> list[Unused]:
    """Finds all that can be removed while nobody works on the store."""
    runs = store.last_runs()
    used = frozenset[str]().union(*(run.keys for run in runs.values()))
    # A state ages while others work on the store: by the clock alone, one that is ahead would remove all.
    worked = [
        path.stat().st_mtime for pattern in ("last_runs/*.json", "locks/[!.]*") for path in store.root.glob(pattern)
    ]
    now = min(time.time(), max(worked, default=0.0))

    def is_unused(shard: Path) -> bool:
        """By the runs that were recorded since it was made, not by times: the clock may have been wrong."""
        checksums = store.checksums(shard.name)
        run = runs.get(checksums.origin.owner) if checksums else None
        return shard.name not in used and (not checksums or (run is not None and run.id != checksums.origin.after))

    def is_abandoned(state: Path) -> bool:
        newest = max(file.stat().st_mtime for file in (state, *state.rglob("*")))
        return store.shard(state.name).exists() or now - newest > STATE_SECONDS

    checksums = sorted(store.root.glob("checksums/*/[!.]*.json"))
    paths: dict[Kind, list[Path]] = {
        # Where no run has recorded yet what it uses, all shards stay.
        "shard": [path for path in sorted(store.root.glob("shards/*/[!.]*")) if runs and is_unused(path)],
        "state": [path for path in sorted(store.root.glob("states/*/*")) if is_abandoned(path)],
        "leftover": temporary_files(store.root) + [path for path in checksums if not store.shard(path.stem).exists()],
    }
    unused = []
    for kind, group in paths.items():
        for path in group:
            files = [file.stat() for file in shard_files(path).values()]
            linked = sum(file.st_size for file in files if file.st_nlink > 1)
            unused.append(Unused(path, kind, sum(file.st_size for file in files), linked))
    return unused


def size_of(size: float) -> str:
    """Formats bytes for a person: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
