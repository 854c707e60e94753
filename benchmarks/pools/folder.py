"""The folder of a generated pool: refused where it does not fit, marked, and removed again with nothing else.

The marker names every file before the first is written, so that a pool that was interrupted can be removed as well.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json, write_json

MARKER = "generated-pool.json"
SPARE = 2**30  # bytes that are left free on the disk


def begin(folder: Path, *, files: Sequence[str], needed: int, **about: Any) -> None:
    """Makes the folder and its marker; a folder that holds something and a disk too small are a DataError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something already; name a new folder, or remove the old pool first")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE:
        if made:
            folder.rmdir()
        raise DataError(
            f"{folder} has {free / 1e9:.1f} GB free, but the pool takes {needed / 1e9:.1f} GB and {SPARE / 1e9:.1f} GB "
            "are to stay free; ask for fewer rows or name another disk"
        )
    write_json(folder / MARKER, {"files": sorted(files), **about})


def about_pool(folder: Path) -> dict[str, Any]:
    """What the marker says."""
    if not (folder / MARKER).is_file():
        raise DataError(f"{folder} holds no generated pool (no {MARKER} in it); name the folder that was generated")
    return read_json(folder / MARKER)


def remove(folder: Path) -> tuple[int, list[str]]:
    """Removes what was generated; gives the bytes freed and the names of what else is there and stays."""
    names = [Path(name) for name in about_pool(folder)["files"]]
    assert not any(name.is_absolute() or ".." in name.parts for name in names), json.dumps(list(map(str, names)))
    freed = 0
    for name in names:
        temporary = folder.joinpath(name.parent).glob(f".{name.name}.*.tmp")
        for path in (folder / name, *temporary):
            if path.is_file():
                freed += path.stat().st_size
                path.unlink()
    for inner in sorted({parent for name in names for parent in name.parents if parent != Path()}, reverse=True):
        if (folder / inner).is_dir() and not any((folder / inner).iterdir()):
            (folder / inner).rmdir()
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    left.remove(MARKER)
    (folder / MARKER).unlink()
    if not left and not any(folder.iterdir()):
        folder.rmdir()
    return freed, left
