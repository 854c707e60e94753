"""Files, or ranges of them, in, a hash of their bytes out; remembered by size, time, inode and range.

What is remembered is one line for each shard of input, so that a pool of millions of records stays cheap. A file that
cannot be read is part of the hash as such and is not remembered.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_text
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.samples import Sample

CHUNK = 1 << 20
SECONDS_BETWEEN_SAVES = 30.0

Range = tuple[Path, int, int]


class Contents:
    """The memory of one data set, in a file of the store."""

    def __init__(self, memory: Path, *, verify: bool = False) -> None:
        self._path = memory
        self._known = {} if verify else _load(memory)
        self._used: dict[str, str] = {}
        self._whole: dict[Range, str] = {}
        self._saved = time.monotonic()

    def of(self, samples: Sequence[Sample]) -> str:
        """The hash of what these samples' pictures depend on, in order."""
        ranges = list(dict.fromkeys((sample.path, sample.offset, sample.length) for sample in samples))
        states = {path: _state(path) for path in {path for path, _, _ in ranges}}
        key = fingerprint(*((str(path), *states[path], offset, length) for path, offset, length in ranges))
        found = self._known.get(key)
        if found is None:
            hashes = [self._hash(part) for part in ranges]
            found = fingerprint(*hashes)
            if "" in hashes:
                return found
            self._remember(key, found)
        self._used[key] = found
        return found

    def of_file(self, path: Path) -> str:
        """The SHA-256 of one whole file; DataError where it cannot be read."""
        key = fingerprint(str(path), *_state(path))
        found = self._known.get(key)
        if found is None:
            found = self._hash((path, 0, -1))
            if not found:
                raise DataError(f"{path} cannot be read; look at the file, or rerun the stage that writes it")
            self._remember(key, found)
        self._used[key] = found
        return found

    def save(self) -> None:
        """Writes what was used this time; the rest is forgotten."""
        self._write(self._used)

    def __enter__(self) -> "Contents":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Saves; after a fault nothing is forgotten, since not all was asked for."""
        if kind is None:
            self.save()
        else:
            self._write({**self._known, **self._used})

    def _remember(self, key: str, found: str) -> None:
        self._known[key] = found
        # To read a pool again after every crash would cost hours.
        if time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:
            self._write(self._known)

    def _write(self, hashes: dict[str, str]) -> None:
        write_text(self._path, json.dumps(hashes, sort_keys=True))
        self._saved = time.monotonic()

    def _hash(self, part: Range) -> str:
        # Many samples of one shard, and many shards, may depend on one whole file.
        if part not in self._whole:
            digest = hashlib.sha256()
            try:
                for block in _blocks(part):
                    digest.update(block)
            except OSError:
                return ""
            if part[2] >= 0:
                return digest.hexdigest()
            self._whole = (
                {**self._whole, part: digest.hexdigest()} if len(self._whole) < 64 else {part: digest.hexdigest()}
            )
        return self._whole[part]


def _load(memory: Path) -> dict[str, str]:
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}  # a lost memory costs a reading, nothing else


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (-1, -1, -1)
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _blocks(part: Range) -> Iterator[bytes]:
    path, offset, left = part
    if not path.is_file():
        raise OSError(f"{path} is no plain file")
    with path.open("rb") as stream:
        stream.seek(offset)
        while left != 0 and (block := stream.read(CHUNK if left < 0 else min(CHUNK, left))):
            yield block
            left -= len(block) if left > 0 else 0
