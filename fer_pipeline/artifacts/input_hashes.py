"""Hash input files, or ranges of them, and remember the hashes by size, time, inode and range.

One line is remembered for each shard of input, so that a pool of millions of records stays cheap. A file that cannot be
read is part of the hash as such and is not remembered.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from fer_pipeline.core import documents
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import write_text
from fer_pipeline.core.fingerprints import fingerprint
from fer_pipeline.core.samples import Sample

SECONDS_BETWEEN_SAVES = 30.0
HASH = re.compile("[0-9a-f]+")
Range = tuple[Path, int, int]  # a file, the first byte, and how many (-1: the rest)
WHOLE_FILES = 64  # hashes of whole files that are held at a time


class InputHashes:
    """The remembered hashes of one data set, in a file of the store. As a context manager it saves them at the end."""

    def __init__(self, memory: Path, *, verify: bool = False) -> None:
        self._path = memory
        self._known: dict[str, str] = {}
        if not verify:
            try:
                known = documents.read_json(memory)
                self._known = {key: sha256 for key, sha256 in known.items() if HASH.fullmatch(str(sha256))}
            except (OSError, ValueError, AttributeError):
                pass  # lost hashes cost a reading, nothing else
        self._used: dict[str, str] = {}
        # Many samples of one shard, and many shards, may depend on one whole file.
        self._hash_whole = lru_cache(WHOLE_FILES)(_hash)
        self._saved = time.monotonic()

    def hash_samples(self, samples: Sequence[Sample]) -> str:
        """Returns the hash of what these samples' images depend on, in order."""
        ranges = list(dict.fromkeys((sample.path, sample.offset, sample.length) for sample in samples))
        states = {path: _state(path) for path in {path for path, _, _ in ranges}}
        key = fingerprint(*((str(path), *states[path], offset, length) for path, offset, length in ranges))
        return self._look_up(key, ranges, lambda hashes: fingerprint(*hashes))

    def hash_file(self, path: Path) -> str:
        """Returns the SHA-256 of one whole file; DataError where it cannot be read."""
        sha256 = self._look_up(fingerprint(str(path), *_state(path)), [(path, 0, -1)], "".join)
        if not sha256:
            raise DataError(f"{path} cannot be read; look at the file, or rerun the stage that writes it")
        return sha256

    def __enter__(self) -> "InputHashes":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What was not used this time is forgotten, but not after an error, since not all was asked for.
        self._write(self._used if kind is None else {**self._known, **self._used})

    def _look_up(self, key: str, ranges: Sequence[Range], combine: Callable[[list[str]], str]) -> str:
        """Returns the hash under `key`, or that of the ranges, which is remembered where all could be read."""
        if key not in self._known:
            hashes = [self._try(*part) for part in ranges]
            if "" in hashes:
                return combine(hashes)
            self._known[key] = combine(hashes)
            if time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:  # to read a pool again would cost hours
                self._write(self._known)
        self._used[key] = self._known[key]
        return self._known[key]

    def _write(self, hashes: dict[str, str]) -> None:
        write_text(self._path, json.dumps(hashes, sort_keys=True))
        self._saved = time.monotonic()

    def _try(self, path: Path, offset: int, length: int) -> str:
        """Returns the SHA-256 of a range, '' where it cannot be read."""
        try:
            return (self._hash_whole if length < 0 else _hash)(path, offset, length)
        except OSError:
            return ""


def _state(path: Path) -> tuple[int, int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return (-1, -1, -1)
    return (state.st_size, state.st_mtime_ns, state.st_ino)


def _hash(path: Path, offset: int, length: int) -> str:
    """Returns the SHA-256 of `length` bytes; the rest of the file where `length` is negative."""
    if not path.is_file():
        raise OSError(f"{path} is no plain file")
    with path.open("rb") as stream:
        stream.seek(offset)
        if length < 0:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(stream.read(length)).hexdigest()
