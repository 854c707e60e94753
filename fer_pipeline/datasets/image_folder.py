"""Read a folder of pictures, one sample a file; folder names give the split, the class and the subject.

Source: the layout of torchvision's `ImageFolder` (`root/<class>/…`) and of most published face sets
(`root/<split>/<class>/…`). Differences: the levels are named by a setting, so that `root/<subject>/…` and a flat folder
of unlabelled pictures are read by the same file; a file is a picture by its suffix or its first bytes, so that `align`
rejects a damaged one with a reason and a count. `left_out` counts the other files, and hidden and system ones.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.datasets._files import (
    SPLITS,
    PictureRoot,
    count_left_out,
    kind_of,
    parse_split,
    picture_id,
    read_range,
    say_empty,
    visible_entries,
)

Level = Literal["split", "class", "subject"]


class Options(Settings):
    """`levels` says what each folder below the root stands for; [] is a flat folder; null guesses."""

    levels: tuple[Level, ...] | None = None
    splits: dict[str, Split] = Field(default_factory=dict)  # folder name -> split, beside the usual words
    follow_links: bool = False  # symbolic links out of the root, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every picture below the root in the order of its name."""
    root = PictureRoot(path, follow_links=options.follow_links)
    levels = guess_levels(root.folder) if options.levels is None else options.levels
    if "class" in levels:
        _check_classes(root, depth=levels.index("class") + 1)
    file = None
    others: Counter[str] = Counter()
    for parts in root.walk(others):
        file = root.folder.joinpath(*parts)
        if len(parts) <= len(levels):
            raise OptionError(
                f"{file} lies above the folders of {'/'.join(levels)} in {root.folder}, though it must lie in one",
                levels="[] (a flat folder)",
            )
        named = dict(zip(levels, parts[:-1], strict=False))
        split = named.get("split")
        yield Sample(
            id=picture_id("/".join(parts)),
            split=parse_split(split, options.splits, where=str(path)) if split else None,
            label=picture_id(named["class"]) if "class" in named else None,
            subject=picture_id(named["subject"]) if "subject" in named else None,
            path=file,
        )
    if file is None:
        raise DataError(f"{say_empty(root.folder, others)}; put the pictures there or correct the data set's path")


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    return count_left_out(PictureRoot(path, follow_links=options.follow_links).walk)


read = read_range  # a picture's file as it is


def guess_levels(folder: Path) -> tuple[Level, ...]:
    """Guesses: flat without folders; split (and class) where all folders are named like splits; else class."""
    tops = [entry for entry in visible_entries(folder) if kind_of(entry) == "folder"]
    as_splits = [entry for entry in tops if entry.name.lower() in SPLITS]
    if not tops:
        return ()
    if not as_splits:
        return ("class",)
    if len(as_splits) < len(tops):
        others = [entry.name for entry in tops if entry not in as_splits]
        raise OptionError(
            f"{folder} holds the splits {', '.join(entry.name for entry in as_splits)} beside {', '.join(others[:5])}",
            levels="[class] (or [split, class], where all are splits)",
        )
    nested = any(kind_of(entry) == "folder" for top in tops for entry in visible_entries(Path(top.path)))
    return ("split", "class") if nested else ("split",)


def _check_classes(root: PictureRoot, *, depth: int) -> None:
    """Refuses classes without a picture; the folders at `depth` are named by their class."""
    folders: list[tuple[str, ...]] = [()]
    for _ in range(depth):
        entries = [(parts, entry) for parts in folders for entry in visible_entries(root.folder.joinpath(*parts))]
        folders = [(*parts, entry.name) for parts, entry in entries if kind_of(entry) == "folder"]
    filled = {parts[-1] for parts in folders if next(root.walk(parts=parts), None) is not None}
    empty = sorted({parts[-1] for parts in folders} - filled)
    if empty:
        raise DataError(f"the class {', '.join(empty)} has no picture in {root.folder}; add some or remove the folder")
