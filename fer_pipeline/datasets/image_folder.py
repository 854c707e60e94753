"""Read a folder of pictures, one sample a file; folder names give the split, the class and the subject.

Source: the layout of torchvision's `ImageFolder` (`root/<class>/…`) and of most published face sets
(`root/<split>/<class>/…`). Differences: the levels are named by a setting, so that `root/<subject>/…` and a flat folder
of unlabelled pictures are read by the same file; every file that is not hidden is a sample, whatever its suffix, so
that `align` rejects what is no picture with a reason and a count. Hidden and system files (names that begin with a dot
or `@`, `Thumbs.db`, `desktop.ini`, `__MACOSX`) are no part of the set.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.datasets._files import PICTURE_SUFFIXES, SPLITS, PictureRoot, parse_split, picture_id, read_range

Level = Literal["split", "class", "subject"]
SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


class Options(Settings):
    """`levels` says what each folder below the root stands for; [] is a flat folder; null guesses."""

    levels: tuple[Level, ...] | None = None
    splits: dict[str, Split] = Field(default_factory=dict)  # folder name -> split, beside the usual words
    follow_links: bool = False  # symbolic links out of the root, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every file below the root in the order of its name."""
    root = PictureRoot(path, follow_links=options.follow_links)
    levels = guess_levels(root.folder) if options.levels is None else options.levels
    if "class" in levels:
        _check_classes(root, depth=levels.index("class") + 1)
    file = None
    for parts in _walk(root, ()):
        file = root.folder.joinpath(*parts)
        if len(parts) <= len(levels) and file.suffix.lower() in PICTURE_SUFFIXES:
            raise DataError(
                f"{file} lies above the folders of {'/'.join(levels)} in {root.folder}; move it into one, or set "
                f"options.levels ([] for a flat folder)"
            )
        named = dict(zip(levels, parts[:-1], strict=False))
        split = named.get("split")
        yield Sample(
            id=picture_id("/".join(parts)),
            split=parse_split(split, options.splits, where=str(path), remedy="set options.splits") if split else None,
            label=picture_id(named["class"]) if "class" in named else None,
            subject=picture_id(named["subject"]) if "subject" in named else None,
            path=file,
        )
    if file is None:
        raise DataError(f"{root.folder} holds no file; put the pictures there or correct the data set's path")


read = read_range  # a picture's file as it is


def guess_levels(folder: Path) -> tuple[Level, ...]:
    """Guesses: flat without folders; split (and class) where all folders are named like splits; else class."""
    tops = [entry for entry in _entries(folder) if entry.is_dir()]
    as_splits = [entry for entry in tops if entry.name.lower() in SPLITS]
    if not tops:
        return ()
    if not as_splits:
        return ("class",)
    if len(as_splits) < len(tops):
        others = [entry.name for entry in tops if entry not in as_splits]
        raise DataError(
            f"{folder} holds the splits {', '.join(entry.name for entry in as_splits)} beside {', '.join(others[:5])}; "
            f"set options.levels, for example [split, class] with options.splits, or [class]"
        )
    nested = any(entry.is_dir() for top in tops for entry in _entries(Path(top.path)))
    return ("split", "class") if nested else ("split",)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if entry.name[0] not in ".@" and entry.name.lower() not in SYSTEM_NAMES]
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))


def _walk(root: PictureRoot, parts: tuple[str, ...], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the parts of every file's path below the root; `above` are the real folders above, to notice a loop."""
    folder = root.folder.joinpath(*parts)
    above = (*above, os.path.realpath(folder))
    for entry in _entries(folder):
        if entry.is_symlink():
            root.check_link(Path(entry.path))
        if not entry.is_dir():
            if not entry.is_file() and os.path.exists(entry.path):
                raise DataError(f"{entry.path} is a pipe, socket or device and no picture; remove it")
            yield (*parts, entry.name)
        elif os.path.realpath(entry.path) in above:
            raise DataError(f"{entry.path} is a link to a folder that holds it; remove the link")
        else:
            yield from _walk(root, (*parts, entry.name), above)


def _check_classes(root: PictureRoot, *, depth: int) -> None:
    """Refuses classes without a picture; the folders at `depth` are named by their class."""
    folders: list[tuple[str, ...]] = [()]
    for _ in range(depth):
        entries = [(parts, entry) for parts in folders for entry in _entries(root.folder.joinpath(*parts))]
        folders = [(*parts, entry.name) for parts, entry in entries if entry.is_dir()]
    filled = {parts[-1] for parts in folders if next(_walk(root, parts), None) is not None}
    empty = sorted({parts[-1] for parts in folders} - filled)
    if empty:
        raise DataError(f"the class {', '.join(empty)} has no picture in {root.folder}; add some or remove the folder")
