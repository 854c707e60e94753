"""A store in, the same store without what no last run uses out, and a line that tells how much room that gives."""

from collections.abc import Sequence
from pathlib import Path

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.sharding.locks import lock_exclusively
from fer_pipeline.sharding.pruning import Unused, find_unused, remove

KINDS = {"shard": "shards of no last run", "state": "states of no use", "leftover": "leftovers of dead runs"}


def run(store: Path, *, dry_run: bool = False) -> str:
    """Prunes a store that no run is at work on; `dry_run` only tells."""
    if not any((store / folder).is_dir() for folder in ("shards", "states", "memory")):
        raise DataError(f"{store} is no store of finished shards; name it with --store")
    with lock_exclusively(store):
        shelf = Store(store)
        found = find_unused(shelf)
        kept = sum(not path.name.startswith(".") for path in store.glob("shards/*/*"))
        kept -= sum(one.kind == "shard" for one in found)
        if not dry_run:
            for one in found:
                remove(shelf, one)
    freed = sum(one.size - one.linked for one in found)
    held = sum(one.linked for one in found)
    more = f"; {size_of(held)} more are held by outputs or DVC's cache" if held else ""
    verb = "would be removed" if dry_run else "removed"
    return f"prune: {_counted(found)} {verb}, {size_of(freed)} freed{more}; {kept:,} shards kept"


def _counted(found: Sequence[Unused]) -> str:
    parts = [(words, [one.size for one in found if one.kind == kind]) for kind, words in KINDS.items()]
    told = [f"{len(sizes):,} {words} ({size_of(sum(sizes))})" for words, sizes in parts if sizes]
    return ", ".join(told) if told else "nothing"


def size_of(size: float) -> str:
    """Bytes for a person: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
