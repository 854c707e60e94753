"""Paths in, the MD5 and SHA-256 of their bytes out, each inode read once, by several threads.

Outputs, DVC's cache and the shard store share inodes, so that three names may mean one read.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

Inode = tuple[int, int]  # device and number
CHUNK = 1 << 20


@dataclass(frozen=True)
class Digest:
    """What was read: hashes in hex, '' for one that nobody asked for; `fault` where it could not be read."""

    md5: str = ""
    sha256: str = ""
    size: int = 0
    fault: str = ""
    denied: bool = False  # the fault is one of permissions


@dataclass
class Ledger:
    """What is to be read, and what was."""

    names: dict[Inode, list[Path]] = field(default_factory=dict)
    wanted: dict[Inode, frozenset[str]] = field(default_factory=dict)
    sizes: dict[Inode, int] = field(default_factory=dict)
    read: dict[Inode, Digest] = field(default_factory=dict)

    def note(self, path: Path, algorithm: str) -> Inode:
        """Asks for a hash of a file; FileNotFoundError where there is none."""
        state = path.stat()
        inode = (state.st_dev, state.st_ino)
        self.names.setdefault(inode, []).append(path)
        self.wanted[inode] = self.wanted.get(inode, frozenset()) | {algorithm}
        self.sizes[inode] = state.st_size
        return inode

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(self.sizes[inode] for inode in self.wanted)

    def hash(self, *, jobs: int, advance: Callable[[int], object]) -> None:
        """Reads everything that was asked for; `advance` hears of the bytes of each finished file."""
        pending: dict[Future[Digest], Inode] = {}
        with ThreadPoolExecutor(jobs) as pool:

            def collect(*, until: int) -> None:
                while len(pending) > until:
                    for done in wait(pending, return_when=FIRST_COMPLETED).done:
                        inode = pending.pop(done)
                        self.read[inode] = done.result()
                        advance(self.sizes[inode])

            for inode, algorithms in self._by_place():
                pending[pool.submit(digest, self.names[inode][0], algorithms)] = inode
                collect(until=4 * jobs)
            collect(until=0)

    def _by_place(self) -> Iterator[tuple[Inode, frozenset[str]]]:
        for inode in sorted(self.wanted, key=lambda one: one[1]):  # near each other on a turning disk
            yield inode, self.wanted[inode]


def digest(path: Path, algorithms: frozenset[str]) -> Digest:
    """The hashes of one file."""
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
        return Digest(size=size, fault=error.strerror or str(error), denied=error.errno in (errno.EACCES, errno.EPERM))
    found = {name: one.hexdigest() for name, one in hashes.items()}
    return Digest(found.get("md5", ""), found.get("sha256", ""), size)
