"""Keep finished shards under the fingerprint of all that they depend on, so that no shard is made twice.

DVC may delete a stage's output before it runs it again, so finished shards are kept outside the outputs, in one folder
that git and DVC ignore, and are hard-linked into the output (copied where the file system cannot link). A finished
shard is there whole or not at all: it is written beside, synced to the disk, its checksums are recorded, and it is
renamed. A shard that no longer matches its checksums is made again. States of long stages (the last epoch of a
training) are in the same store and are dropped when their stage has finished.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.checksums import (
    Checksums,
    Origin,
    compute_checksums,
    read_checksums,
    shard_files,
    write_checksums,
)
from fer_pipeline.core.files import fsync_path, read_json, replacing, replacing_folder, write_json


class Store:
    """Finished shards and states under one root folder, used by one `owner` (stage@set).

    `damaged` collects the keys of shards that no longer matched their checksums; `verify` hashes every shard that is
    asked for.
    """

    def __init__(self, root: Path, *, owner: str = "", verify: bool = False) -> None:
        self.root = root
        self.owner = owner
        self.damaged: set[str] = set()
        self._verify = verify
        self._verified: set[str] = set()

    def shard(self, key: str) -> Path:
        """Returns the path of the shard of this fingerprint, finished or not."""
        return self.root / "shards" / key[:2] / key

    def checksums(self, key: str) -> Checksums | None:
        """Returns the checksums of a finished shard; None where there are none."""
        return read_checksums(self._checksums(key))

    def has(self, key: str) -> bool:
        """Tells whether the shard is finished and undamaged; a damaged one is taken out of the store."""
        shard = self.shard(key)
        if not shard.exists():
            return False
        if key in self._verified:
            return True
        recorded = self.checksums(key)
        if recorded is not None:
            present = recorded.verify(shard, rehash=self._verify)
            if present is None:
                self.damaged.add(key)
                self.remove(key)
                return False
            if present is not recorded:
                write_checksums(self._checksums(key), present)
        self._verified.add(key)
        return True

    def make(self, key: str, make: Callable[[Path], object], *, origin: Origin | None = None) -> bool:
        """Makes the shard unless it is there; True where it was. `make` writes the path that it is given."""
        return self._make(key, make, replacing, origin)

    def make_folder(self, key: str, make: Callable[[Path], object], *, origin: Origin | None = None) -> bool:
        """Does the same for a result of several files: `make` fills the empty folder that it is given."""
        return self._make(key, make, replacing_folder, origin)

    def _make(
        self, key: str, make: Callable[[Path], object], replace_path: Callable[[Path], Any], origin: Origin | None
    ) -> bool:
        if self.has(key):
            return True
        started = time.monotonic()
        with replace_path(self.shard(key)) as temporary:
            make(temporary)
            seconds = round(time.monotonic() - started, 3)
            made_by = replace(origin or Origin(), owner=self.owner, seconds=seconds)
            # Recorded before the rename: a shard of this store that is there has its checksums.
            write_checksums(self._checksums(key), compute_checksums(temporary, made_by))
        return False

    def remove(self, key: str) -> None:
        """Takes a shard out of the store; outputs that it was linked into keep it."""
        shard = self.shard(key)
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink(missing_ok=True)
        self._checksums(key).unlink(missing_ok=True)

    def link(self, key: str, out: Path) -> None:
        """Puts a finished shard (or folder of files) at `out`."""
        for name, file in shard_files(self.shard(key)).items():
            link_file(file, out / name if name else out)

    def record_run(self, keys: Iterable[str]) -> None:
        """Records the shards of the owner's last run, so that pruning keeps them."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"ended": ended, "time": time.time(), "keys": list(keys)}
        write_json(self.root / "last_runs" / f"{self.owner}.json", content)

    def last_runs(self) -> dict[str, tuple[float, frozenset[str]]]:
        """Returns for every stage@set when its last run ended and which shards it used."""
        runs = {path.stem: read_json(path) for path in sorted((self.root / "last_runs").glob("*.json"))}
        return {owner: (float(run["time"]), frozenset(run["keys"])) for owner, run in runs.items()}

    def state(self, stage: str, key: str) -> Path:
        """Returns the folder of a long stage's mid-run state. Its owner writes whole files into it."""
        folder = self.root / "states" / stage / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_state(self, stage: str, key: str) -> None:
        """Removes a state whose stage has finished."""
        shutil.rmtree(self.root / "states" / stage / key, ignore_errors=True)

    def memory(self, name: str) -> Path:
        """Returns a file for what is remembered between runs (hashes of inputs by size, mtime and inode)."""
        path = self.root / "memory" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _checksums(self, key: str) -> Path:
        return self.root / "checksums" / key[:2] / f"{key}.json"


def link_file(source: Path, out: Path) -> None:
    """Hard-links `source` to `out`, or copies it where that is impossible; what stood at `out` is replaced whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, out)  # at once whole, and the bytes are on the disk already
        return
    except OSError:
        pass  # something stands there, or the file system cannot link
    with replacing(out) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            fsync_path(temporary)
