"""A folder of DVC's objects (its cache, or a remote in a folder) in, which are there and which are whole out.

Source: the layout of DVC 3, `files/md5/<two digits>/<the rest>`. An object's name is the MD5 of its bytes; `.dir` marks
the list of a folder's files, a JSON list of `md5` and `relpath` in the order of the paths.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fer_pipeline.health.digests import Digest, Inode, Ledger

NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")
State = Literal["whole", "rotten", "unreadable", "missing"]


@dataclass
class Shelf:
    """The objects of one cache or remote, by their names."""

    root: Path
    ledger: Ledger
    inodes: dict[str, Inode] = field(default_factory=dict)
    old: int = 0  # of DVC 2, whose names are no MD5 of the bytes

    def path(self, name: str) -> Path:
        """Where the object of this name lies."""
        return self.root / "files" / "md5" / name[:2] / name[2:]

    def digest(self, name: str) -> Digest:
        """What was read of an object that is there."""
        return self.ledger.read[self.inodes[name]]

    def state(self, name: str) -> State:
        """Whether the object is what its name says."""
        if name not in self.inodes:
            return "missing"
        found = self.digest(name)
        if found.fault:
            return "unreadable"
        return "whole" if found.md5 == name.removesuffix(".dir") else "rotten"

    def members(self, name: str) -> dict[str, str] | None:
        """Path and hash of each file of a folder; None where the list is not there whole."""
        return listed(self.path(name).read_bytes()) if self.state(name) == "whole" else None


def shelf(root: Path, ledger: Ledger) -> Shelf:
    """Notes every object under `root` to be hashed."""
    found = Shelf(root, ledger)
    for path in sorted(root.glob("files/md5/[0-9a-f][0-9a-f]/*")):
        if NAME.fullmatch(path.name) and path.is_file():
            found.inodes[path.parent.name + path.name] = ledger.note(path, "md5")
    found.old = sum(bool(NAME.fullmatch(path.name)) for path in root.glob("[0-9a-f][0-9a-f]/*"))
    return found


def listed(content: bytes) -> dict[str, str]:
    """Path and hash of each file that a `.dir` object lists."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def list_name(files: Mapping[str, str]) -> str:
    """The name of the `.dir` object that would list these files: path -> MD5."""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    content = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir"
