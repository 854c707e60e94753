"""Faults in, their rotten bytes gone: from the cache, the workspace, the shard store or the remote, by every name.

DVC looks at names, not at bytes: while a rotten object lies there, neither pull nor push nor repro replaces it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from fer_pipeline.core.files import replacing
from fer_pipeline.health.digests import digest
from fer_pipeline.health.faults import Fault
from fer_pipeline.health.inspection import Inspection
from fer_pipeline.health.objects import Shelf

ASIDE = Path(".dvc/tmp/rotten")


def remove(root: Path, found: Inspection) -> tuple[list[Path], list[Path]]:
    """Removes what is rotten; the paths that went, and where bytes lie now of which no other copy is known."""
    gone: list[Path] = []
    aside: list[Path] = []
    for fault in found.faults:
        if fault.place == "store" and fault.is_removable:
            shard = _key(fault.path, found)
            found.shards.store.remove(shard)
            gone.append(found.shards.store.shard(shard))
        elif fault.is_removable and fault.path.exists() and _is_rotten(fault):
            if fault.is_last and fault.kind == "rotten":
                aside.append(root / ASIDE / (fault.path.parent.name + fault.path.name))
                with replacing(aside[-1]) as temporary:
                    shutil.copyfile(fault.path, temporary)
            gone += _by_every_name(fault.path, found)
        if fault.place == "remote" and found.remote is not None:
            gone += list(_lists(fault, found.remote, found.cache))
    return list(dict.fromkeys(gone)), aside


def _is_rotten(fault: Fault) -> bool:
    """Once more, just before it goes: someone may have healed it."""
    again = digest(fault.path, frozenset({"md5"}))
    return bool(again.fault) or again.md5 != fault.expected.removeprefix("md5 ")


def _by_every_name(path: Path, found: Inspection) -> Iterator[Path]:
    state = path.stat()
    inode = (state.st_dev, state.st_ino)
    for key in sorted(found.shards.with_inode().get(inode, ())):
        found.shards.store.remove(key)
        yield found.shards.store.shard(key)
    for name in found.ledger.names[inode]:
        name.unlink(missing_ok=True)
        yield name


def _lists(fault: Fault, held: Shelf, cache: Shelf) -> Iterator[Path]:
    """The lists of folders with a lost file: while they lie there, `dvc push` takes the file to lie there too."""
    lost = fault.path.parent.name + fault.path.name
    for name in held.inodes:
        if name.endswith(".dir") and held.path(name).exists() and lost in (held.members(name) or {}).values():
            # A list that nobody else holds stays: without it the other files of its folder were lost too.
            if cache.state(name) == "whole" or fault.out:
                held.path(name).unlink()
                yield held.path(name)


def _key(path: Path, found: Inspection) -> str:
    return path.relative_to(found.shards.store.root / "shards").parts[1]
