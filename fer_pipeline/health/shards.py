"""The shard store in, the finished shards that are no longer what was sealed out.

A shard lies in its output and in DVC's cache under the same inode, so one flipped bit is in all three: it is told as
the cache's, and the shard goes with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fer_pipeline.artifacts.checksums import Checksums, shard_files
from fer_pipeline.artifacts.store import Store
from fer_pipeline.health.cures import Cure
from fer_pipeline.health.digests import Inode, Ledger
from fer_pipeline.health.faults import Fault


@dataclass
class Shards:
    """The sealed shards of a store and the inodes of their files, by key and by the name of the file in the shard."""

    store: Store
    seals: dict[str, Checksums] = field(default_factory=dict)
    inodes: dict[str, dict[str, Inode]] = field(default_factory=dict)
    unsealed: int = 0

    def with_inode(self) -> Mapping[Inode, set[str]]:
        """The shards that hold an inode."""
        found: dict[Inode, set[str]] = {}
        for key, files in self.inodes.items():
            for inode in files.values():
                found.setdefault(inode, set()).add(key)
        return found


def shards(root: Path, ledger: Ledger) -> Shards:
    """Notes every sealed shard's files to be hashed."""
    found = Shards(Store(root))
    for path in sorted(root.glob("shards/*/*")):
        if path.name.startswith("."):
            continue
        seal = found.store.checksums(path.name)
        if seal is None:
            found.unsealed += 1
            continue
        found.seals[path.name] = seal
        found.inodes[path.name] = {name: ledger.note(file, "sha256") for name, file in shard_files(path).items()}
    return found


def shard_faults(found: Shards, ledger: Ledger, *, told: frozenset[Inode], removal: Cure) -> list[Fault]:
    """The shards that are not what was sealed, without those whose rotten inode was `told` as an object's."""
    faults: list[Fault] = []
    for key, seal in found.seals.items():
        files = found.inodes[key]
        if told & set(files.values()):
            continue
        for name in sorted(seal.files.keys() | files.keys()):
            sealed, inode = seal.files.get(name), files.get(name)
            digest = ledger.read[inode] if inode else None
            if sealed and digest and digest.sha256 == sealed[2]:
                continue
            shard = found.store.shard(key)
            path = shard / name if name else shard
            denied = digest is not None and digest.denied
            if digest is None:
                told_as = "missing"
            elif digest.fault:
                told_as = digest.fault
            else:
                told_as = f"sha256 {digest.sha256}, {digest.size:,} bytes"
            faults.append(
                Fault(
                    kind="unreadable" if digest and digest.fault else "rotten",
                    place="store",
                    path=path,
                    out="",
                    stage=seal.origin.owner,
                    expected=f"sha256 {sealed[2]}, {sealed[0]:,} bytes" if sealed else "no such file",
                    found=told_as,
                    # Nothing is made at once: a shard is made again when a stage next needs it.
                    cures=(Cure("chmod u+r", (str(path),)),) if denied else (removal,),
                )
            )
    return faults
