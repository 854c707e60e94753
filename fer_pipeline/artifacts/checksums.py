"""Seals of finished shards: size, time and SHA-256 of each file, written before the shard is there; later the verdict.

A shard may be cut short, overwritten or replaced from outside, since it shares its inode with the outputs. Sizes are
compared at every use; where only the time differs, and wherever a caller asks for it, the bytes are hashed again.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fer_pipeline.core.files import file_sha256, write_text

FileSeal = tuple[int, int, str]  # size, time of change in ns, SHA-256


@dataclass(frozen=True)
class Origin:
    """What a maker tells of a shard, for estimates and for pruning: no part of its bytes."""

    owner: str = ""  # stage@set
    items: int = 0
    device: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Seal:
    """What a finished shard was when it was made; the file of a shard that is no folder has the name ''."""

    files: dict[str, FileSeal]
    origin: Origin
    made: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _, _ in self.files.values())


def seal_of(shard: Path, origin: Origin) -> Seal:
    """The seal of a shard as it lies there now."""
    return Seal({name: _file_seal(path) for name, path in files_of(shard).items()}, origin)


def files_of(shard: Path) -> dict[str, Path]:
    """The files of a shard by their names in it."""
    if not shard.is_dir():
        return {"": shard}
    return {path.relative_to(shard).as_posix(): path for path in sorted(shard.rglob("*")) if path.is_file()}


def write_seal(path: Path, seal: Seal) -> None:
    """Writes a seal, whole or not at all."""
    content = {"files": seal.files, "origin": asdict(seal.origin), "made": seal.made}
    write_text(path, json.dumps(content, sort_keys=True) + "\n")


def read_seal(path: Path) -> Seal | None:
    """The seal in a file; None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = {name: (int(size), int(changed), str(sha)) for name, (size, changed, sha) in content["files"].items()}
        return Seal(files, Origin(**content["origin"]), float(content["made"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def judged(seal: Seal, shard: Path, *, verify: bool = False) -> Seal | None:
    """The seal of a shard that is what was sealed, with the times of its files as they are now; None for another."""
    found = files_of(shard)
    if found.keys() != seal.files.keys():
        return None
    files: dict[str, FileSeal] = {}
    for name, path in found.items():
        size, changed, sha = seal.files[name]
        state = path.stat()
        if state.st_size != size:
            return None
        if (verify or state.st_mtime_ns != changed) and file_sha256(path) != sha:
            return None
        files[name] = (size, state.st_mtime_ns, sha)
    return seal if files == seal.files else replace(seal, files=files)


def _file_seal(path: Path) -> FileSeal:
    state = path.stat()
    return state.st_size, state.st_mtime_ns, file_sha256(path)
