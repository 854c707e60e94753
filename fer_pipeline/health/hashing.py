"""Hash files by several threads, each inode once.

Outputs, DVC's cache and the shard store share inodes, so that three paths may cost one read.
"""

import errno
import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fer_pipeline.core.progress import progress

Inode = tuple[int, int]  # device and number
CHUNK = 1 << 20
MEGABYTE = 1_000_000


class FileHash(NamedTuple):
    """MD5 and SHA-256 in hex, '' for one that was not asked for; `error` where the file could not be read."""

    md5: str = ""
    sha256: str = ""
    size: int = 0
    error: str = ""
    is_denied: bool = False  # the error is one of permissions


@dataclass
class FileHasher:
    """The files to hash, and their hashes once `run` is through."""

    paths: defaultdict[Inode, list[Path]] = field(default_factory=lambda: defaultdict(list))
    algorithms: defaultdict[Inode, set[str]] = field(default_factory=lambda: defaultdict(set))
    sizes: dict[Inode, int] = field(default_factory=dict)  # bytes
    hashes: dict[Inode, FileHash] = field(default_factory=dict)

    def add(self, path: Path, algorithm: str) -> Inode:
        """Asks for a hash of a file; FileNotFoundError where there is none."""
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        self.paths[inode].append(path)
        self.algorithms[inode].add(algorithm)
        self.sizes[inode] = status.st_size
        return inode

    def run(self, *, threads: int) -> None:
        """Hashes everything that was asked for, and shows the progress in megabytes."""
        inodes = sorted(self.paths, key=lambda inode: inode[1])  # near each other on a turning disk
        total, read = sum(self.sizes.values()), 0
        with progress("fsck", total // MEGABYTE, "MB") as advance, ThreadPoolExecutor(threads) as pool:
            try:
                hashes = pool.map(lambda one: hash_file(self.paths[one][0], frozenset(self.algorithms[one])), inodes)
                for inode, file_hash in zip(inodes, hashes, strict=True):
                    self.hashes[inode] = file_hash
                    previous, read = read, read + self.sizes[inode]
                    advance(read // MEGABYTE - previous // MEGABYTE)
            finally:
                pool.shutdown(cancel_futures=True)  # an interrupted command does not hash the rest first


def hash_file(path: Path, algorithms: frozenset[str]) -> FileHash:
    """Hashes one file with each algorithm (`md5`, `sha256`) in one read."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in sorted(algorithms)}
    size = 0
    try:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                for one in hashes.values():
                    one.update(chunk)
    except OSError as error:
        is_denied = error.errno in (errno.EACCES, errno.EPERM)
        return FileHash(size=size, error=error.strerror or str(error), is_denied=is_denied)
    digests = {name: one.hexdigest() for name, one in hashes.items()}
    return FileHash(digests.get("md5", ""), digests.get("sha256", ""), size)
