"""The shard store: a fingerprint in, a finished file out, made at most once however often the stage is killed.

DVC may delete a stage's output before it runs it again, so finished shards live outside the outputs, in one folder that
git and DVC ignore, and are hard-linked into the output (copied where the file system cannot link). A finished shard is
there whole or not at all: it is written beside, brought to the disk and renamed. States of long stages (the last epoch
of a training) lie in the same store and are dropped when their stage has finished.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fer_pipeline.core.files import fsync_path, replacing, replacing_folder


class Store:
    """Finished shards and states under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def shard(self, key: str) -> Path:
        """Where the shard of this fingerprint lies, finished or not."""
        return self.root / "shards" / key[:2] / key

    def has(self, key: str) -> bool:
        """Whether the shard of this fingerprint is finished."""
        return self.shard(key).exists()

    def make(self, key: str, make: Callable[[Path], None]) -> bool:
        """Makes the shard unless it is there; True where it was. `make` writes the path that it is given."""
        if self.has(key):
            return True
        with replacing(self.shard(key)) as temporary:
            make(temporary)
        return False

    def make_folder(self, key: str, make: Callable[[Path], None]) -> bool:
        """Like `make` for a result of several files: `make` fills the empty folder that it is given."""
        if self.has(key):
            return True
        with replacing_folder(self.shard(key)) as temporary:
            make(temporary)
        return False

    def link(self, key: str, out: Path) -> None:
        """Puts a finished shard (or folder of files) at `out`."""
        source = self.shard(key)
        if source.is_dir():
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                link_file(file, out / file.relative_to(source))
        else:
            link_file(source, out)

    def fetch_or_make(self, key: str, name: str, out: Path, make: Callable[[Path], None]) -> bool:
        """The shard at `out / name`, made only where no finished one exists; True where it was reused."""
        reused = self.make(key, make)
        self.link(key, out / name)
        return reused

    def state(self, stage: str, key: str) -> Path:
        """The folder of a long stage's mid-run state. Its owner writes whole files into it."""
        folder = self.root / "states" / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_state(self, stage: str, key: str) -> None:
        """Removes a state whose stage has finished."""
        shutil.rmtree(self.root / "states" / stage / key, ignore_errors=True)

    def memory(self, name: str) -> Path:
        """A file for what is remembered between runs (hashes of inputs by size, mtime and inode)."""
        path = self.root / "memory" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def link_file(source: Path, out: Path) -> None:
    """Hard-links `source` to `out`, or copies it where that is impossible; what stood at `out` is replaced whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            fsync_path(temporary)
