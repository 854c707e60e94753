"""Find damaged bytes in DVC's cache, the outputs, the shard store and one remote, and choose what repairs them.

Source: the layout of DVC 3, `files/md5/<two digits>/<the rest>`. An object's name is the MD5 of its bytes; `.dir` marks
the list of a folder's files, a JSON list of `md5` and `relpath` in the order of the paths.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fer_pipeline.artifacts.store import Checksums, Store, shard_files
from fer_pipeline.core.errors import DataError
from fer_pipeline.health.damage import Command, Damage
from fer_pipeline.health.dvc_project import DvcConfig, Output, Remote, read_outputs
from fer_pipeline.health.hashing import FileHash, FileHasher, Inode, hash_file

OBJECT_NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")
MAKING = ("dvc repro", "dvc update", "dvc add")
MANY_CHANGED = 8  # files of one output: it is checked out as a whole


@dataclass
class Objects:
    """The objects of DVC's cache, or of a remote in a folder, by their names."""

    root: Path
    hasher: FileHasher
    inodes: dict[str, Inode] = field(default_factory=dict)
    num_old: int = 0  # of DVC 2, whose names are no MD5 of the bytes

    def scan(self) -> "Objects":
        """Asks for the hash of every object."""
        for path in sorted(self.root.glob("files/md5/[0-9a-f][0-9a-f]/*")):
            if OBJECT_NAME.fullmatch(path.name) and path.is_file():
                self.inodes[path.parent.name + path.name] = self.hasher.add(path, "md5")
        self.num_old = sum(bool(OBJECT_NAME.fullmatch(path.name)) for path in self.root.glob("[0-9a-f][0-9a-f]/*"))
        return self

    def path(self, name: str) -> Path:
        """Returns where the object of this name is stored."""
        return self.root / "files" / "md5" / name[:2] / name[2:]

    def hash(self, name: str) -> FileHash:
        """Returns the hash of an object, an empty one where it is missing."""
        return self.hasher.hashes[self.inodes[name]] if name in self.inodes else FileHash()

    def state(self, name: str) -> Literal["intact", "damaged", "unreadable", "missing"]:
        """Says whether the object is what its name says."""
        if name not in self.inodes:
            return "missing"
        if self.hash(name).error:
            return "unreadable"
        return "intact" if self.hash(name).md5 == name.removesuffix(".dir") else "damaged"

    def list_files(self, name: str) -> dict[str, str] | None:
        """Returns path and hash of each file of a folder; None where its list is not intact."""
        if self.state(name) != "intact":
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(self.path(name).read_bytes())}

    def damage(
        self, name: str, output: str, stage: str, commands: tuple[Command, ...], *, place: Literal["cache", "remote"]
    ) -> Damage:
        """Describes an object that is not intact; one that cannot be read by this user may be."""
        state, actual = self.state(name), self.hash(name)
        assert state != "intact"
        if actual.is_denied:
            commands = (Command("chmod u+r", (self.path(name).as_posix(),)),)
        text = actual.error or (f"md5 {actual.md5}" if actual.md5 else "nothing")
        return Damage(state, place, self.path(name), output, stage, f"md5 {name.removesuffix('.dir')}", text, commands)


@dataclass
class WorkspaceOutput:
    """The files of an output in the workspace by their names in it, '' for an output that is a file.

    `expected` maps each name to its MD5; it is None where nobody knows any more. The lists name files that differ.
    """

    output: Output
    path: Path
    inodes: dict[str, Inode]
    expected: Mapping[str, str] | None = None
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)  # those that share their inode with a damaged object
    unexpected: list[str] = field(default_factory=list)

    @property
    def is_intact(self) -> bool:
        """Whether the workspace alone holds all of the output."""
        return self.expected is not None and not (self.missing or self.changed or self.linked or self.unexpected)

    @property
    def is_edited(self) -> bool:
        """Whether DVC would have to overwrite something."""
        return bool(self.changed or self.unexpected)

    def compare(self, cache: Objects) -> None:
        """Compares the hashes of the files with those that `dvc.lock` promises."""
        md5s = {name: cache.hasher.hashes[inode].md5 for name, inode in self.inodes.items()}
        self.expected = cache.list_files(self.output.md5) if self.output.is_folder else {"": self.output.md5}
        if self.expected is None and _list_name(md5s) == self.output.md5:
            self.expected = md5s  # the list is lost, and its name proves the files
        for name, md5 in (self.expected or {}).items():
            if name not in md5s:
                self.missing.append(name)
            elif md5s[name] != md5:
                (self.linked if self.inodes[name] == cache.inodes.get(md5) else self.changed).append(name)
        if self.expected is not None:
            self.unexpected = [name for name in md5s if name not in self.expected]

    def damage(
        self, name: str, kind: Literal["missing", "changed", "unreadable"], actual: str, *commands: Command
    ) -> Damage:
        """Describes a file, '' for the whole output, that is not what `dvc.lock` promises."""
        path, output = self.path / name if name else self.path, self.output
        md5 = (self.expected or {}).get(name) if name else output.md5
        expected = f"md5 {md5}" if md5 else "no such file"
        return Damage(kind, "workspace", path, output.file(name), output.stage, expected, actual, commands)


def _list_name(md5s: Mapping[str, str]) -> str:
    """Returns the name of the `.dir` object that would list these files, path -> MD5."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(md5s.items())]
    content = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir"


@dataclass
class Shards:
    """The finished shards of a store by key: their checksums, and the inodes of their files by name in the shard."""

    store: Store
    checksums: dict[str, Checksums] = field(default_factory=dict)
    inodes: dict[str, dict[str, Inode]] = field(default_factory=dict)
    num_without_checksums: int = 0

    def scan(self, hasher: FileHasher) -> "Shards":
        """Asks for the hashes of every shard's files."""
        for path in sorted(self.store.root.glob("shards/*/*")):
            if path.name.startswith("."):
                continue
            checksums = self.store.checksums(path.name)
            if checksums is None:
                self.num_without_checksums += 1
                continue
            self.checksums[path.name] = checksums
            self.inodes[path.name] = {name: hasher.add(file, "sha256") for name, file in shard_files(path).items()}
        return self

    def damages(self, hasher: FileHasher, *, reported: set[Inode], removal: Command) -> Iterator[Damage]:
        """Yields files that differ from their checksums, except for shards with an inode that was `reported`.

        A shard shares its inode with its output and DVC's cache: it is reported as the cache's and removed with it.
        """
        for key, checksums in self.checksums.items():
            inodes, shard = self.inodes[key], self.store.shard(key)
            for name in sorted(checksums.files.keys() | inodes.keys()) if reported.isdisjoint(inodes.values()) else ():
                recorded, actual = checksums.files.get(name), hasher.hashes[inodes[name]] if name in inodes else None
                if recorded and actual and actual.sha256 == recorded[2]:
                    continue
                path = shard / name if name else shard
                # Nothing is made at once: a shard is made again when a stage next needs it.
                is_denied = actual is not None and actual.is_denied
                expected = f"sha256 {recorded[2]}, {recorded[0]:,} bytes" if recorded else "no such file"
                yield Damage(
                    kind="unreadable" if actual and actual.error else "damaged",
                    place="store",
                    path=path,
                    output="",
                    stage=checksums.origin.owner,
                    expected=expected,
                    actual=(actual.error or f"sha256 {actual.sha256}, {actual.size:,} bytes") if actual else "missing",
                    commands=(Command("chmod u+r", (str(path),)) if is_denied else removal,),
                )


@dataclass
class Diagnosis:
    """Everything that was checked, and the damage in it."""

    hasher: FileHasher
    cache: Objects
    outputs: list[WorkspaceOutput]
    shards: Shards
    remote: Objects | None
    num_unchecked_outputs: int
    damages: list[Damage] = field(default_factory=list)

    @property
    def checked(self) -> dict[str, int]:
        """Objects, bytes, files of the workspace and shards that were hashed."""
        return {
            "objects": len(self.cache.inodes) + (len(self.remote.inodes) if self.remote else 0),
            "bytes": sum(one.size for one in self.hasher.hashes.values()),
            "files": sum(len(one.inodes) for one in self.outputs),
            "shards": len(self.shards.checksums),
        }

    @property
    def not_checked(self) -> dict[str, int]:
        """What has no hash that says what its bytes were."""
        return {
            "objects_of_dvc_2": self.cache.num_old + (self.remote.num_old if self.remote else 0),
            "outputs_elsewhere": self.num_unchecked_outputs,
            "shards_without_checksums": self.shards.num_without_checksums,
        }


def diagnose(
    root: Path, config: DvcConfig, *, store: Path, remote: str | None, removal: Command, threads: int
) -> Diagnosis:
    """Hashes everything and compares it; `removal` is the command that removes damaged bytes."""
    hasher, recorded = FileHasher(), read_outputs(root)
    cache = Objects(config.cache, hasher).scan()
    outputs: list[WorkspaceOutput] = []
    for output in recorded.outputs:
        path = root / output.path
        files = (path.rglob("*") if path.is_dir() else ()) if output.is_folder else (path,)
        present = sorted(file for file in files if file.is_file())  # no link that leads nowhere
        names = {"" if file == path else file.relative_to(path).as_posix(): file for file in present}
        outputs.append(WorkspaceOutput(output, path, {name: hasher.add(file, "md5") for name, file in names.items()}))
    diagnosis = Diagnosis(
        hasher,
        cache,
        outputs,
        Shards(Store(store)).scan(hasher),
        Objects(_remote_folder(config, remote), hasher).scan() if remote else None,
        recorded.unchecked,
    )
    hasher.run(threads=threads)
    for one in outputs:
        one.compare(cache)
    _drop_ignored(root, outputs)
    diagnosis.damages = _repeat_stages_once(list(_find_damages(root, config.remote, diagnosis, remote, removal)))
    return diagnosis


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
    result = subprocess.run(command, cwd=root, input="\n".join(paths) + "\n", capture_output=True, text=True)
    if result.returncode not in (0, 1):  # 1: none is ignored
        reason = (result.stderr.strip() or result.stdout.strip() or str(result.returncode)).splitlines()[-1]
        raise DataError(f"`dvc check-ignore` failed: {reason}; correct that first")
    ignored = set(result.stdout.splitlines())
    for one in outputs:
        one.unexpected = [name for name in one.unexpected if one.output.file(name) not in ignored]


def _find_damages(
    root: Path, default_remote: Remote | None, diagnosis: Diagnosis, remote: str | None, removal: Command
) -> Iterator[Damage]:
    cache = diagnosis.cache
    used: dict[str, tuple[Output, str]] = {}  # object -> the first output that needs it, and the file's name in it
    for one in diagnosis.outputs:
        yield from _output_damages(root, one, cache, default_remote, removal)
        for name, md5 in {"": one.output.md5, **(one.expected or {})}.items():
            used.setdefault(md5, (one.output, name))
    for md5 in cache.inodes:
        if md5 not in used and cache.state(md5) != "intact":  # an older version's
            fetch = (Command("dvc fetch --all-commits"),) if _remote_has(default_remote, [md5], cache.hasher) else ()
            yield cache.damage(md5, "", "", (removal, *fetch), place="cache")
    reported = {inode for md5, inode in cache.inodes.items() if cache.state(md5) != "intact"}
    yield from diagnosis.shards.damages(diagnosis.hasher, reported=reported, removal=removal)
    if diagnosis.remote is None or remote is None:
        return
    objects = diagnosis.remote
    listed = {md5 for name in used if name.endswith(".dir") for md5 in (objects.list_files(name) or {}).values()}
    for md5 in sorted(objects.inodes.keys() | listed):
        if objects.state(md5) == "intact":
            continue
        output, name = used.get(md5, (None, ""))
        if output is not None:
            push = (Command("dvc push", ("-r", remote, output.path)),)
        else:
            is_here = cache.state(md5) == "intact"
            push = (Command("dvc push --all-commits", ("-r", remote)),) if is_here else ()
        path, stage = (output.file(name), output.stage) if output else ("", "")
        # A missing file, too: while its folder's list is there, DVC takes its files to be there.
        yield objects.damage(md5, path, stage, (removal, *push), place="remote")


def _output_damages(
    root: Path, one: WorkspaceOutput, cache: Objects, remote: Remote | None, removal: Command
) -> Iterator[Damage]:
    """Yields damaged objects of an output in the cache, then damaged files in the workspace, the same bytes once."""
    output = one.output
    needed = {**({"": output.md5} if output.is_folder else {}), **(one.expected or {})} if output.is_cached else {}
    faulty = {name: md5 for name, md5 in needed.items() if cache.state(md5) != "intact"}
    restore = _restore_command(one, list(faulty.values()), cache.hasher, remote)
    checkout = Command("dvc checkout --force" if one.is_edited else "dvc checkout", (output.path,))
    if not output.is_cached:
        checkout = Command("dvc repro", (output.stage,))
    # Nothing can be checked out while objects are missing: what makes these makes the whole output.
    is_made = bool(faulty) and restore.name in MAKING
    in_place = restore if is_made else checkout
    if not one.inodes and (faulty or one.missing) and all(cache.state(md5) == "missing" for md5 in faulty.values()):
        yield one.damage("", "missing", "nothing", restore if faulty else checkout)
        return
    for name, md5 in faulty.items():
        removals = () if cache.state(md5) == "missing" else (removal,)
        yield cache.damage(md5, output.file(name), output.stage, (*removals, restore), place="cache")
    for name in one.missing:
        if name not in faulty:
            yield one.damage(name, "missing", "nothing", in_place)
    for name in one.changed:
        actual = cache.hasher.hashes[one.inodes[name]]
        path = output.file(name)
        # DVC takes a file of the same time and size for the same, and would leave it.
        notice = Command("touch", (path,)) if len(one.changed) <= MANY_CHANGED else Command("rm -r", (output.path,))
        commands = (in_place,) if is_made else (notice, in_place)
        if actual.is_denied:
            commands = (Command("chmod u+r", (path,)),)
        kind = "unreadable" if actual.error else "changed"
        yield one.damage(name, kind, actual.error or f"md5 {actual.md5}", *commands)
    for name in one.unexpected:
        yield one.damage(name, "changed", "a file", in_place)


def _restore_command(one: WorkspaceOutput, md5s: Sequence[str], hasher: FileHasher, remote: Remote | None) -> Command:
    """Chooses what restores objects of an output: the workspace, the remote, else what made the output."""
    output = one.output
    if one.is_intact:
        return Command("dvc commit", (output.path,))
    if md5s and _remote_has(remote, md5s, hasher):
        # `dvc pull` stops at files that were changed; these have a command of their own.
        return Command("dvc fetch" if one.is_edited else "dvc pull", (output.path,))
    if output.is_imported:
        return Command("dvc update", (output.stage,))
    if output.is_added:
        return Command("dvc add", (output.path,))
    return Command("dvc repro", (output.stage,))


def _remote_has(remote: Remote | None, md5s: Sequence[str], hasher: FileHasher) -> bool:
    """Says whether the remote has all of these objects intact; one that is no folder is trusted."""
    if remote is None or remote.folder is None:
        return remote is not None
    objects = Objects(remote.folder, hasher)
    return all(hash_file(objects.path(md5), frozenset({"md5"})).md5 == md5.removesuffix(".dir") for md5 in md5s)


def _repeat_stages_once(damages: list[Damage]) -> list[Damage]:
    """Replaces `dvc commit` where the stage runs again: it makes all its outputs, and commit refuses a missing one."""
    repeated = {one.stage for one in damages if any(command.name == "dvc repro" for command in one.commands)}
    for number, one in enumerate(damages):
        if one.stage in repeated:
            repro = Command("dvc repro", (one.stage,))
            commands = tuple(repro if command.name == "dvc commit" else command for command in one.commands)
            damages[number] = replace(one, commands=commands)
    return damages
