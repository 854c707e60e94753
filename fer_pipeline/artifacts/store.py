"""Keep finished shards under the fingerprint of all that they depend on, so that no shard is made twice.

DVC may delete a stage's output before it runs it again, so finished shards are kept outside the outputs, in one folder
that git and DVC ignore, and are hard-linked into the output (copied where the file system cannot link). A finished
shard is there whole or not at all: it is written beside, synced to the disk, its checksums are recorded, and it is
renamed. A shard that no longer matches its checksums is made again. States of long stages (the last epoch of a
training) are in the same store and are dropped when their stage has finished.
"""

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from fer_pipeline.core import documents
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import (
    file_sha256,
    fresh_folder,
    fsync_path,
    refuse_damage,
    remove,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)

FileChecksum = tuple[int, int, str]  # size in bytes, time of change in ns, SHA-256


@dataclass(frozen=True)
class Origin:
    """Who made a shard, with what and how long it took, for estimates and for pruning: no part of its bytes."""

    owner: str = ""  # stage@set
    after: str = ""  # the last run of the owner that was recorded then
    items: int = 0
    device: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Checksums:
    """What a shard was when it was finished; the file of a shard that is no folder has the name ''."""

    files: dict[str, FileChecksum]
    origin: Origin

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
            (size, changed, sha256), state = self.files[name], path.stat()
            same = not rehash and state.st_mtime_ns == changed
            if state.st_size != size or not (same or file_sha256(path) == sha256):
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
        return TypeAdapter(Checksums).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


class Run(NamedTuple):
    """A recorded run: the shards that it used. One that was recorded by older code has the id ''."""

    id: str
    keys: frozenset[str]


def _read_run(record: Path) -> Run:
    with refuse_damage(record, "is no record of a run", "remove it, and its shards stay until that run is made again"):
        content = documents.read_json(record)
        return Run(str(content.get("id", "")), frozenset(map(str, content["keys"])))


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
        self._last_run = ""
        with suppress(DataError):  # there is none yet, or it is written anew at the end of this run
            self._last_run = _read_run(self._record).id

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

    def make(
        self, key: str, make: Callable[[Path], object], *, origin: Origin | None = None, folder: bool = False
    ) -> bool:
        """Makes the shard unless it is there; True where it was.

        `make` writes the path that it is given, or fills the empty folder there.
        """
        if self.has(key):
            return True
        started = time.monotonic()
        with (replacing_folder if folder else replacing)(self.shard(key)) as temporary:
            make(temporary)
            seconds = round(time.monotonic() - started, 3)
            made_by = replace(origin or Origin(), owner=self.owner, after=self._last_run, seconds=seconds)
            # Recorded before the rename: a shard of this store that is there has its checksums.
            write_checksums(self._checksums(key), compute_checksums(temporary, made_by))
        return False

    def remove(self, key: str) -> None:
        """Takes a shard out of the store; outputs that it was linked into keep it."""
        remove(self.shard(key))
        self._checksums(key).unlink(missing_ok=True)

    def link(self, key: str, out: Path) -> None:
        """Puts a finished shard (or folder of files) at `out`."""
        for name, file in shard_files(self.shard(key)).items():
            link_file(file, out / name if name else out)

    def deliver(self, out: Path, keys: Mapping[str, str], *, others: Iterable[str] = ()) -> None:
        """Fills the folder `out` with finished folders by name ("": the whole of it) and drops their states.

        The run is recorded with these keys and the `others`.
        """
        fresh_folder(out)
        for name, key in keys.items():
            self.link(key, out / name)
            self.drop_state(self.owner.partition("@")[0], key)
        self.record_run([*keys.values(), *others])

    def record_run(self, keys: Iterable[str]) -> None:
        """Records the shards of the owner's last run, so that pruning keeps them."""
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._last_run = uuid.uuid4().hex
        write_json(self._record, {"id": self._last_run, "ended": ended, "keys": list(keys)})

    def last_runs(self) -> dict[str, "Run"]:
        """Returns the last run of every stage@set."""
        return {path.stem: _read_run(path) for path in sorted((self.root / "last_runs").glob("*.json"))}

    @property
    def _record(self) -> Path:
        return self.root / "last_runs" / f"{self.owner}.json"

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
        return self.root / "memory" / name

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
