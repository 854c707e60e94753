"""The shard store: a fingerprint in, a finished file out, made at most once however often the stage is killed.

DVC may delete a stage's output before it runs it again, so finished shards live outside the outputs, in one folder that
git and DVC ignore, and are hard-linked into the output (copied where the file system cannot link). A finished shard is
there whole or not at all: it is written beside, brought to the disk, sealed and renamed. A shard that is no longer what
was sealed is made again. States of long stages (the last epoch of a training) lie in the same store and are dropped
when their stage has finished.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fer_pipeline.artifacts.checksums import Origin, Seal, judged, read_seal, seal_of, write_seal
from fer_pipeline.core.files import fsync_path, read_json, replacing, replacing_folder, write_json


class Store:
    """Finished shards and states under one root folder, used by one `owner` (stage@set).

    `damaged` collects the keys of shards that were found to be no longer what was sealed; `verify` hashes every shard
    that is asked for.
    """

    def __init__(self, root: Path, *, owner: str = "", verify: bool = False) -> None:
        self.root = root
        self.owner = owner
        self.damaged: set[str] = set()
        self._verify = verify
        self._sound: set[str] = set()

    def shard(self, key: str) -> Path:
        """Where the shard of this fingerprint lies, finished or not."""
        return self.root / "shards" / key[:2] / key

    def seal(self, key: str) -> Seal | None:
        """What is known of a finished shard; None for one that was made before there were seals."""
        return read_seal(self._seal(key))

    def has(self, key: str) -> bool:
        """Whether the shard of this fingerprint is finished and sound; a damaged one is taken out of the store."""
        shard = self.shard(key)
        if not shard.exists():
            return False
        if key in self._sound:
            return True
        seal = self.seal(key)
        if seal is not None:
            sound = judged(seal, shard, verify=self._verify)
            if sound is None:
                self.damaged.add(key)
                self.remove(key)
                return False
            if sound is not seal:
                write_seal(self._seal(key), sound)
        self._sound.add(key)
        return True

    def make(self, key: str, make: Callable[[Path], object], *, origin: Origin | None = None) -> bool:
        """Makes the shard unless it is there; True where it was. `make` writes the path that it is given."""
        if self.has(key):
            return True
        started = time.monotonic()
        with replacing(self.shard(key)) as temporary:
            make(temporary)
            self._write_seal(key, temporary, origin, started)
        return False

    def make_folder(self, key: str, make: Callable[[Path], object], *, origin: Origin | None = None) -> bool:
        """Like `make` for a result of several files: `make` fills the empty folder that it is given."""
        if self.has(key):
            return True
        started = time.monotonic()
        with replacing_folder(self.shard(key)) as temporary:
            make(temporary)
            self._write_seal(key, temporary, origin, started)
        return False

    def remove(self, key: str) -> None:
        """Takes a shard out of the store; outputs that it was linked into keep it."""
        shard = self.shard(key)
        shutil.rmtree(shard) if shard.is_dir() else shard.unlink(missing_ok=True)
        self._seal(key).unlink(missing_ok=True)

    def link(self, key: str, out: Path) -> None:
        """Puts a finished shard (or folder of files) at `out`."""
        source = self.shard(key)
        if source.is_dir():
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                link_file(file, out / file.relative_to(source))
        else:
            link_file(source, out)

    def used(self, keys: Iterable[str]) -> None:
        """Notes the shards of the owner's last run, so that pruning keeps them."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"ended": ended, "time": time.time(), "keys": list(keys)}
        write_json(self.root / "ledger" / f"{self.owner}.json", content)

    def uses(self) -> dict[str, tuple[float, frozenset[str]]]:
        """The last run of every stage@set: when it ended and which shards it used."""
        notes = {path.stem: read_json(path) for path in sorted((self.root / "ledger").glob("*.json"))}
        return {owner: (float(note["time"]), frozenset(note["keys"])) for owner, note in notes.items()}

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

    def _seal(self, key: str) -> Path:
        return self.root / "seals" / key[:2] / f"{key}.json"

    def _write_seal(self, key: str, made: Path, origin: Origin | None, started: float) -> None:
        seconds = round(time.monotonic() - started, 3)
        # Sealed before it is renamed: a shard of this store that is there has its seal.
        write_seal(self._seal(key), seal_of(made, replace(origin or Origin(), owner=self.owner, seconds=seconds)))


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
