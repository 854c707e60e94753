"""Remove damaged bytes from the cache, the shard store, the workspace and the remote, under every name.

DVC looks at names, not at bytes: while a damaged object is there, neither pull nor push nor repro replaces it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from fer_pipeline.core.files import replacing
from fer_pipeline.health.diagnosis import FSCK, Damage, Diagnosis, object_path
from fer_pipeline.health.hashing import hash_file

SET_ASIDE = Path(".dvc/tmp/damaged")


def remove_damage(root: Path, diagnosis: Diagnosis) -> tuple[list[Path], list[Path]]:
    """Removes damaged bytes.

    Returns:
        The removed paths, and where bytes lie now of which no other copy is known.
    """
    removed: list[Path] = []
    set_aside: list[Path] = []
    for damage in diagnosis.damages:
        path, commands = damage.path, {command.name for command in damage.commands}
        if damage.place == "store" and FSCK in commands:
            removed.append(_remove(path, diagnosis))
        elif FSCK in commands and path.exists():
            again = hash_file(path, frozenset({"md5"}))
            if not again.error and again.md5 == damage.expected.removeprefix("md5 "):
                continue  # somebody has repaired it since
            if damage.kind == "damaged" and commands <= {FSCK, "dvc add"}:  # no other copy is known, and no stage
                set_aside.append(root / SET_ASIDE / (path.parent.name + path.name))
                with replacing(set_aside[-1]) as temporary:
                    shutil.copyfile(path, temporary)
            status = path.stat()
            removed += [_remove(name, diagnosis) for name in diagnosis.hasher.paths[status.st_dev, status.st_ino]]
        if damage.place == "remote":
            removed += _remove_lists(damage, diagnosis)
    return list(dict.fromkeys(removed)), set_aside


def _remove(path: Path, diagnosis: Diagnosis) -> Path:
    """Removes a file, or the shard of the store that it belongs to; returns what was removed."""
    store = diagnosis.store
    if path.is_relative_to(store.root / "shards"):
        key = path.relative_to(store.root / "shards").parts[1]
        store.remove(key)
        return store.shard(key)
    path.unlink(missing_ok=True)
    return path


def _remove_lists(damage: Damage, diagnosis: Diagnosis) -> Iterator[Path]:
    """Removes the remote's lists of folders with this file: `dvc push` takes every file of a list to be there."""
    remote, damaged_name = diagnosis.remote, damage.path.parent.name + damage.path.name
    assert remote is not None
    for name in remote.inodes:
        path = object_path(remote.root, name)
        if name.endswith(".dir") and path.exists() and damaged_name in (remote.list_files(name) or {}).values():
            # A list that is nowhere else stays: without it the other files of its folder were lost too.
            if diagnosis.cache.is_intact(name) or damage.output:
                path.unlink()
                yield path
