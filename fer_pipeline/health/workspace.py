"""One output's files in the workspace in, how they differ from what `dvc.lock` promises out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.health.digests import Inode, Ledger
from fer_pipeline.health.objects import Shelf, list_name
from fer_pipeline.health.outputs import Output


@dataclass(frozen=True)
class Laid:
    """The files of an output that lie in the workspace, by their names in it; '' for an output that is a file."""

    output: Output
    path: Path
    inodes: Mapping[str, Inode]

    def file(self, name: str) -> Path:
        """Where a file lies, or would."""
        return self.path / name if name else self.path


@dataclass(frozen=True)
class Compared:
    """What an output should hold (None: nobody knows any more), and the names of files that differ."""

    members: Mapping[str, str] | None
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    shared: tuple[str, ...]  # those that differ because they share their inode with an object that does
    strange: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the workspace alone holds all of the output."""
        return self.members is not None and not (self.missing or self.changed or self.shared or self.strange)

    @property
    def is_edited(self) -> bool:
        """Whether DVC would have to overwrite something."""
        return bool(self.changed or self.strange)


def laid(root: Path, output: Output, ledger: Ledger) -> Laid:
    """Notes the files of an output to be hashed; links that lead nowhere count as missing."""
    path = root / output.path
    if not output.is_folder:
        return Laid(output, path, {"": ledger.note(path, "md5")} if path.is_file() else {})
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    return Laid(output, path, {file.relative_to(path).as_posix(): ledger.note(file, "md5") for file in files})


def compared(lying: Laid, cache: Shelf) -> Compared:
    """Compares by hash; where the list of a folder is lost, the files as they lie may still be proven by its name."""
    read = {name: cache.ledger.read[inode] for name, inode in lying.inodes.items()}
    members = expected(lying, cache)
    if members is None:
        return Compared(None, (), (), (), ())
    different = [name for name in members if name in read and read[name].md5 != members[name]]
    shared = [name for name in different if lying.inodes[name] == cache.inodes.get(members[name])]
    return Compared(
        members,
        missing=tuple(name for name in members if name not in read),
        changed=tuple(name for name in different if name not in shared),
        shared=tuple(shared),
        strange=tuple(name for name in read if name not in members),
    )


def expected(lying: Laid, cache: Shelf) -> Mapping[str, str] | None:
    """The hash of each file that the output should hold."""
    output = lying.output
    if not output.is_folder:
        return {"": output.md5}
    members = cache.members(output.md5)
    if members is None:
        found = {name: cache.ledger.read[inode].md5 for name, inode in lying.inodes.items()}
        members = found if list_name(found) == output.md5 else None
    return members
