"""Record size, time and SHA-256 of the files of a finished shard, and verify later that it is still the same.

A shard may be cut short, overwritten or replaced from outside, since it shares its inode with the outputs. Sizes are
compared at every use; where only the time differs, and wherever a caller asks for it, the bytes are hashed again.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fer_pipeline.core.files import file_sha256, write_text

FileChecksum = tuple[int, int, str]  # size in bytes, time of change in ns, SHA-256


@dataclass(frozen=True)
class Origin:
    """Who made a shard, with what and how long it took, for estimates and for pruning: no part of its bytes."""

    owner: str = ""  # stage@set
    items: int = 0
    device: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Checksums:
    """What a shard was when it was finished; the file of a shard that is no folder has the name ''."""

    files: dict[str, FileChecksum]
    origin: Origin
    created: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Returns the bytes of all files."""
        return sum(size for size, _, _ in self.files.values())

    def verify(self, shard: Path, *, rehash: bool = False) -> "Checksums | None":
        """Returns the checksums with the present times of the files, or None where the shard has changed."""
        paths = shard_files(shard)
        if paths.keys() != self.files.keys():
            return None
        files: dict[str, FileChecksum] = {}
        for name, path in paths.items():
            size, changed, sha256 = self.files[name]
            state = path.stat()
            if state.st_size != size:
                return None
            if (rehash or state.st_mtime_ns != changed) and file_sha256(path) != sha256:
                return None
            files[name] = (size, state.st_mtime_ns, sha256)
        return self if files == self.files else replace(self, files=files)


def compute_checksums(shard: Path, origin: Origin) -> Checksums:
    """Hashes a shard as it is on the disk now."""
    states = {name: (path.stat(), path) for name, path in shard_files(shard).items()}
    return Checksums({n: (s.st_size, s.st_mtime_ns, file_sha256(path)) for n, (s, path) in states.items()}, origin)


def shard_files(shard: Path) -> dict[str, Path]:
    """Returns the files of a shard by their names in it."""
    if not shard.is_dir():
        return {"": shard}
    return {path.relative_to(shard).as_posix(): path for path in sorted(shard.rglob("*")) if path.is_file()}


def write_checksums(path: Path, checksums: Checksums) -> None:
    """Writes checksums, whole or not at all."""
    write_text(path, json.dumps(asdict(checksums), sort_keys=True) + "\n")


def read_checksums(path: Path) -> Checksums | None:
    """Reads checksums; None where the file is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (int(size), int(ns), str(sha)) for name, (size, ns, sha) in content["files"].items()}
        return Checksums(files, Origin(**content["origin"]), float(content["created"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
