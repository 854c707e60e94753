"""Find damaged bytes in DVC's cache, the outputs, the shard store and one remote, and name what repairs them.

Source: the layout of DVC 3, `files/md5/<two digits>/<the rest>`. An object's name is the MD5 of its bytes; `.dir` marks
the list of a folder's files, a JSON list of `md5` and `relpath` in the order of the paths. Outputs, DVC's cache and the
shard store share inodes, so that three paths may cost one read.
"""

import errno
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from fer_pipeline.artifacts.locked_stages import read_stages
from fer_pipeline.artifacts.store import Checksums, Store, shard_files
from fer_pipeline.core.documents import parse_json
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import refuse_damage
from fer_pipeline.core.progress import progress
from fer_pipeline.health.dvc_project import DvcConfig, Output, Remote, read_outputs
from fer_pipeline.health.recorded_settings import find_contradictions

FSCK = "python -m fer_pipeline fsck"
OBJECT_NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")
CHUNK, MEGABYTE = 1 << 20, 1_000_000
MANY_CHANGED = 8  # files of one output: it is checked out as a whole
# Damaged bytes are removed first; then what is intact elsewhere is fetched, and only the rest is made again.
ORDER: Sequence[str] = (
    f"chmod u+r|{FSCK}|dvc fetch|dvc fetch --all-commits|dvc pull|rm -r|touch|dvc checkout|dvc checkout --force|"
    "dvc commit|dvc add|dvc update|dvc repro|dvc repro --force --single-item|dvc push|dvc push --all-commits"
).split("|")

Inode = tuple[int, int]  # device and number
Kind = Literal["damaged", "missing", "changed", "unreadable", "other settings"]


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


class Command(NamedTuple):
    """A shell command and what it is given."""

    name: str
    arguments: tuple[str, ...] = ()


def shell_line(commands: Iterable[Command]) -> str:
    """Joins commands into one line for a shell, each name once with all arguments; '' for none."""
    arguments: dict[str, dict[str, None]] = {}
    for command in commands:
        arguments.setdefault(command.name, {}).update(dict.fromkeys(command.arguments))
    ordered = sorted(arguments, key=lambda name: ORDER.index(name))
    return " && ".join(shlex.join([*shlex.split(name), *arguments[name]]) for name in ordered)


class Damage(NamedTuple):
    """Bytes that are not what was recorded, reported once however many names their inode has."""

    kind: Kind
    place: Literal["cache", "workspace", "store", "remote"]
    path: Path
    output: str  # of the project, with the file in it; '' where no output of today needs it
    stage: str
    expected: str
    actual: str
    commands: tuple[Command, ...]

    def after(self, file_hash: FileHash) -> "Damage":
        """Returns the damage with the error of reading the file; one that this user may not read may be intact."""
        if not file_hash.error:
            return self
        commands = (Command("chmod u+r", (str(self.path),)),) if file_hash.is_denied else self.commands
        return self._replace(kind="unreadable", actual=file_hash.error, commands=commands)


class Objects:
    """The objects of DVC's cache, or of a remote in a folder, by their names."""

    def __init__(self, place: Literal["cache", "remote"], root: Path, hasher: FileHasher) -> None:
        """Asks for the hash of every object; `num_old` are those of DVC 2, whose names are no MD5 of the bytes."""
        self.place: Literal["cache", "remote"] = place
        self.root, self.hasher = root, hasher
        paths = [path for path in sorted(root.glob("files/md5/[0-9a-f][0-9a-f]/*")) if OBJECT_NAME.fullmatch(path.name)]
        self.inodes = {path.parent.name + path.name: hasher.add(path, "md5") for path in paths if path.is_file()}
        self.num_old = sum(bool(OBJECT_NAME.fullmatch(path.name)) for path in root.glob("[0-9a-f][0-9a-f]/*"))

    def is_intact(self, name: str) -> bool:
        """Says whether the object is there and what its name says."""
        return name in self.inodes and self.hasher.hashes[self.inodes[name]].md5 == name.removesuffix(".dir")

    def list_files(self, name: str) -> dict[str, str] | None:
        """Returns path and hash of each file of a folder; None where its list is not intact."""
        if not self.is_intact(name):
            return None
        path = object_path(self.root, name)
        with refuse_damage(path, "is no list of files, though its name is its hash", "remove it, and run: dvc fetch"):
            return {entry["relpath"]: entry["md5"] for entry in parse_json(path.read_bytes())}

    def damage(self, name: str, output: str, stage: str, *commands: Command) -> Damage:
        actual = self.hasher.hashes[self.inodes[name]] if name in self.inodes else FileHash()
        kind, text = ("damaged", f"md5 {actual.md5}") if name in self.inodes else ("missing", "nothing")
        expected, path = f"md5 {name.removesuffix('.dir')}", object_path(self.root, name)
        return Damage(kind, self.place, path, output, stage, expected, text, commands).after(actual)


def object_path(root: Path, name: str) -> Path:
    """Returns where DVC stores an object below the root of a cache or remote."""
    return root / "files" / "md5" / name[:2] / name[2:]


class WorkspaceOutput:
    """The files of an output in the workspace by their names in it, '' for an output that is a file.

    `expected` maps each name to its MD5; it is None where nobody knows any more. The lists name files that differ.
    """

    def __init__(self, output: Output, root: Path, hasher: FileHasher) -> None:
        self.output, self.path, self.hasher = output, root / output.path, hasher
        files = (self.path.rglob("*") if self.path.is_dir() else ()) if output.md5.endswith(".dir") else (self.path,)
        present = sorted(file for file in files if file.is_file())  # no link that leads nowhere
        names = ("" if file == self.path else file.relative_to(self.path).as_posix() for file in present)
        self.inodes = {name: hasher.add(file, "md5") for name, file in zip(names, present, strict=True)}

    def compare(self, cache: Objects) -> None:
        """Compares the hashes of the files with those that `dvc.lock` promises."""
        md5s = {name: self.hasher.hashes[inode].md5 for name, inode in self.inodes.items()}
        expected = cache.list_files(self.output.md5) if self.output.md5.endswith(".dir") else {"": self.output.md5}
        entries = json.dumps([{"md5": md5, "relpath": path} for path, md5 in sorted(md5s.items())], sort_keys=True)
        list_md5 = hashlib.md5(entries.encode(), usedforsecurity=False).hexdigest()
        if expected is None and f"{list_md5}.dir" == self.output.md5:
            expected = md5s  # the list is lost, and its name proves the files
        self.expected, promised = expected, expected or {}
        self.missing = [name for name in promised if name not in md5s]
        differing = [name for name, md5 in promised.items() if md5s.get(name, md5) != md5]
        # One that shares its inode with a damaged object is reported with it.
        self.changed = [name for name in differing if self.inodes[name] != cache.inodes.get(promised[name])]
        self.unexpected = [name for name in md5s if name not in promised] if expected is not None else []
        self.is_whole = expected is not None and not self.missing and not differing

    def damage(self, name: str, kind: Kind, actual: str, *commands: Command) -> Damage:
        """Describes a file, '' for the whole output, that is not what `dvc.lock` promises."""
        path, output = self.path / name if name else self.path, self.output
        md5 = (self.expected or {}).get(name) if name else output.md5
        expected = f"md5 {md5}" if md5 else "no such file"
        return Damage(kind, "workspace", path, output.file(name), output.stage, expected, actual, commands)


class Diagnosis(NamedTuple):
    """What was hashed, the damage in it, and counts of what was checked and of what has no hash to check it by."""

    hasher: FileHasher
    cache: Objects
    remote: Objects | None
    store: Store
    damages: list[Damage]
    checked: dict[str, int]
    not_checked: dict[str, int]


def diagnose(
    root: Path, config: DvcConfig, *, store: Path, remote: str | None, removal: Command, threads: int
) -> Diagnosis:
    """Hashes everything and compares it; `removal` is the command that removes damaged bytes."""
    hasher, (recorded, num_elsewhere), shard_store = FileHasher(), read_outputs(root), Store(store)
    cache = Objects("cache", config.cache, hasher)
    outputs = [WorkspaceOutput(output, root, hasher) for output in recorded]
    far = Objects("remote", _remote_folder(config, remote), hasher) if remote else None
    stored = {shard: shard_store.checksums(shard.name) for shard in sorted(store.glob("shards/*/[!.]*"))}
    shards = [
        (shard, checksums, {name: hasher.add(file, "sha256") for name, file in shard_files(shard).items()})
        for shard, checksums in stored.items()
        if checksums is not None
    ]
    hasher.run(threads=threads)
    for one in outputs:
        one.compare(cache)
    _drop_ignored(root, outputs)
    used: dict[str, tuple[Output, str]] = {}  # object -> the first output that needs it, and the file's name in it
    for one in outputs:
        for name, md5 in {"": one.output.md5, **(one.expected or {})}.items():
            used.setdefault(md5, (one.output, name))
    damages = [damage for one in outputs for damage in _output_damages(one, cache, config.remote, removal)]
    for md5 in cache.inodes:
        if md5 not in used and not cache.is_intact(md5):  # an older version's
            fetch = (Command("dvc fetch --all-commits"),) if _remote_has(config.remote, [md5]) else ()
            damages.append(cache.damage(md5, "", "", removal, *fetch))
    damages += _shard_damages(shards, cache, removal)
    damages += [
        Damage("other settings", "workspace", path, path.relative_to(root).as_posix(), stage, f"{key} {locked}",
               str(recorded), (Command("dvc repro --force --single-item", (stage,)),))
        for stage, path, key, locked, recorded in find_contradictions(root, read_stages(root / "dvc.lock"))
    ]  # fmt: skip
    if far is not None and remote is not None:
        damages += _remote_damages(far, remote, used, cache, removal)
    # A stage that runs again makes all its outputs, and `dvc commit` refuses a missing one.
    repeated = {one.stage for one in damages if any(command.name == "dvc repro" for command in one.commands)}
    for number, one in enumerate(damages):
        if one.stage in repeated:
            repro = Command("dvc repro", (one.stage,))
            commands = tuple(repro if command.name == "dvc commit" else command for command in one.commands)
            damages[number] = one._replace(commands=commands)
    checked = {
        "objects": len(cache.inodes) + (len(far.inodes) if far else 0),
        "bytes": sum(one.size for one in hasher.hashes.values()),
        "files": sum(len(one.inodes) for one in outputs),
        "shards": len(shards),
    }
    not_checked = {
        "objects_of_dvc_2": cache.num_old + (far.num_old if far else 0),
        "outputs_elsewhere": num_elsewhere,
        "shards_without_checksums": len(stored) - len(shards),
    }
    return Diagnosis(hasher, cache, far, shard_store, damages, checked, not_checked)


def _remote_folder(config: DvcConfig, remote: str) -> Path:
    if remote not in config.remotes:
        known = ", ".join(sorted(config.remotes)) or "none"
        raise DataError(f"no remote {remote!r}; DVC knows {known}")
    folder, url = config.remotes[remote].folder, config.remotes[remote].url
    if folder is None:
        raise DataError(
            f"the remote {remote!r} ({url}) is no folder of this machine, so fsck cannot read it; "
            f"let each pull check it: dvc remote modify {remote} verify true"
        )
    if not folder.is_dir():
        raise DataError(f"the folder {folder} of the remote {remote!r} does not exist; mount it, or run: dvc push")
    return folder


def _drop_ignored(root: Path, outputs: Sequence[WorkspaceOutput]) -> None:
    """Drops unexpected files that DVC is told to ignore."""
    paths = [one.output.file(name) for one in outputs for name in one.unexpected]
    if not paths:
        return
    command = [sys.executable, "-m", "dvc", "check-ignore", "--stdin"]
    with tempfile.TemporaryDirectory() as folder:  # private, and nothing is remembered of this
        environment, words = {**os.environ, "DVC_SITE_CACHE_DIR": folder}, "\n".join(paths) + "\n"
        result = subprocess.run(command, cwd=root, env=environment, input=words, capture_output=True, text=True)
    if result.returncode not in (0, 1):  # 1: none is ignored
        reason = (result.stderr.strip() or result.stdout.strip() or str(result.returncode)).splitlines()[-1]
        raise DataError(f"`dvc check-ignore` failed: {reason}; correct that first")
    ignored = set(result.stdout.splitlines())
    for one in outputs:
        one.unexpected = [name for name in one.unexpected if one.output.file(name) not in ignored]


def _output_damages(one: WorkspaceOutput, cache: Objects, remote: Remote | None, removal: Command) -> Iterator[Damage]:
    """Yields damaged objects of an output in the cache, then damaged files in the workspace, the same bytes once."""
    output = one.output
    needed = {"": output.md5, **(one.expected or {})} if output.is_cached else {}  # '' is the list of a folder
    faulty = {name: md5 for name, md5 in needed.items() if not cache.is_intact(md5)}
    is_edited = bool(one.changed or one.unexpected)  # DVC would have to overwrite something
    restore = in_place = Command("dvc checkout --force" if is_edited else "dvc checkout", (output.path,))
    is_made = False
    if faulty and one.is_whole and not one.unexpected:
        restore = Command("dvc commit", (output.path,))
    elif faulty and _remote_has(remote, faulty.values()):
        # `dvc pull` stops at files that were changed; these have a command of their own.
        restore = Command("dvc fetch" if is_edited else "dvc pull", (output.path,))
    elif faulty or not output.is_cached:
        # Nothing can be checked out while objects are missing: what makes these makes the whole output.
        is_made, restore = bool(faulty), Command("dvc repro", (output.stage,))
        if faulty and output.is_imported:
            restore = Command("dvc update", (output.stage,))
        elif faulty and output.stage.endswith(".dvc"):  # a person put it there, so that no stage can make it again
            restore = Command("dvc add", (output.path,))
        in_place = restore
    if not one.inodes and (faulty or one.missing) and cache.inodes.keys().isdisjoint(faulty.values()):
        yield one.damage("", "missing", "nothing", restore)
        return
    for name, md5 in faulty.items():
        yield cache.damage(md5, output.file(name), output.stage, *(removal,) * (md5 in cache.inodes), restore)
    for name in one.missing:
        if name not in faulty:
            yield one.damage(name, "missing", "nothing", in_place)
    for name in one.changed:
        # DVC takes a file of the same time and size for the same, and would leave it.
        touch, rm = Command("touch", (output.file(name),)), Command("rm -r", (output.path,))
        notice = () if is_made else (touch if len(one.changed) <= MANY_CHANGED else rm,)
        actual = cache.hasher.hashes[one.inodes[name]]
        yield one.damage(name, "changed", f"md5 {actual.md5}", *notice, in_place).after(actual)
    for name in one.unexpected:
        yield one.damage(name, "changed", "a file", in_place)


def _remote_has(remote: Remote | None, md5s: Iterable[str]) -> bool:
    """Says whether the remote has all of these objects intact; one that is no folder is trusted."""
    if remote is None or (folder := remote.folder) is None:
        return remote is not None
    only = frozenset({"md5"})
    return all(hash_file(object_path(folder, md5), only).md5 == md5.removesuffix(".dir") for md5 in md5s)


def _shard_damages(
    shards: Iterable[tuple[Path, Checksums, Mapping[str, Inode]]], cache: Objects, removal: Command
) -> Iterator[Damage]:
    """Yields files that differ from their checksums; nothing is made at once, but when a stage next needs the shard.

    A shard that shares an inode with a damaged object of the cache is reported as the cache's and removed with it.
    """
    reported = {inode for md5, inode in cache.inodes.items() if not cache.is_intact(md5)}
    for shard, checksums, inodes in shards:
        for name in sorted(checksums.files.keys() | inodes.keys()) if reported.isdisjoint(inodes.values()) else ():
            recorded = checksums.files.get(name)
            actual = cache.hasher.hashes[inodes[name]] if name in inodes else FileHash()
            if recorded and actual.sha256 == recorded[2]:
                continue
            path, owner = shard / name if name else shard, checksums.origin.owner
            expected = f"sha256 {recorded[2]}, {recorded[0]:,} bytes" if recorded else "no such file"
            text = f"sha256 {actual.sha256}, {actual.size:,} bytes" if name in inodes else "missing"
            yield Damage("damaged", "store", path, "", owner, expected, text, (removal,)).after(actual)


def _remote_damages(
    objects: Objects, remote: str, used: Mapping[str, tuple[Output, str]], cache: Objects, removal: Command
) -> Iterator[Damage]:
    """Yields damaged objects, and files missing from a folder whose list is there: DVC takes them to be there."""
    listed = {md5 for name in used if name.endswith(".dir") for md5 in (objects.list_files(name) or {}).values()}
    for md5 in sorted(objects.inodes.keys() | listed):
        if objects.is_intact(md5):
            continue
        if md5 in used:
            output, name = used[md5]
            push = Command("dvc push", ("-r", remote, output.path))
            yield objects.damage(md5, output.file(name), output.stage, removal, push)
        else:
            push = (Command("dvc push --all-commits", ("-r", remote)),) * cache.is_intact(md5)
            yield objects.damage(md5, "", "", removal, *push)
