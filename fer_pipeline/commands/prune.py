"""Remove from the shard store what no last run uses."""

from pathlib import Path

from fer_pipeline.artifacts.store import Store
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import STORE
from fer_pipeline.sharding.locks import lock_exclusively
from fer_pipeline.sharding.pruning import find_unused, remove

KINDS = {"shard": "shards of no last run", "state": "states of no use", "leftover": "leftovers of dead runs"}


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
        num_shards = len(list(store.glob("shards/*/[!.]*")))
        for one in unused if not dry_run else ():
            remove(Store(store), one)
    sizes = {kind: [one.size for one in unused if one.kind == kind] for kind in KINDS}
    kinds = [(text, sizes[kind]) for kind, text in KINDS.items() if sizes[kind]]
    parts = [f"{len(one):,} {text} ({size_of(sum(one))})" for text, one in kinds]
    linked = sum(one.linked for one in unused)
    more = f"; {size_of(linked)} more are held by outputs or DVC's cache" if linked else ""
    freed = size_of(sum(one.size for one in unused) - linked)
    verb = "would be removed" if dry_run else "removed"
    rest = num_shards - len(sizes["shard"])
    return f"prune: {', '.join(parts) or 'nothing'} {verb}, {freed} freed{more}; {rest:,} shards kept"


def size_of(size: float) -> str:
    """Formats bytes for a person: `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
