"""A table of pictures in, the settings of the `csv` adapter that read it out, where one answer is obvious.

A column is guessed by its name, the image root by the first rows' files being there. No answer, or more than one, is
one line that lists the candidates and names the option that settles it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.datasets._files import SPLITS
from fer_pipeline.datasets._tables import Table, open_table
from fer_pipeline.datasets.csv import Options

NAMES = {
    "image": "image images img imgs file files filename filepath path imagepath imagename imagefile imageid "
    "picture pic photo subdirectoryfilepath",
    "label": "label labels emotion emotions expression class category emotionlabel expressionlabel",
    "subject": "subject subjectid identity identityid person personid participant participantid actor",
    "split": "split usage set subset partition",
}
ROWS_TRIED = 50
SPOKEN = ("image_root", "image_column", "label_column", "subject_column", "split_column")


@dataclass(frozen=True)
class Wishes:
    """What the user said: `value` for every table, or `set=value` for one; several are tried in turn."""

    image_root: Sequence[Path] = ()
    image_column: Sequence[str] = ()
    label_column: Sequence[str] = ()
    subject_column: Sequence[str] = ()
    split_column: Sequence[str] = ()
    reject_missing: bool = False

    def sets(self) -> frozenset[str]:
        """The sets that are named."""
        parts = [_addressed(value)[0] for name in SPOKEN for value in getattr(self, name)]
        return frozenset(part for part in parts if part)

    def of(self, name: str) -> "Wishes":
        """What is said to one set: what names it, then what names none."""
        chosen: dict[str, Sequence[str]] = {}
        for key in SPOKEN:
            parts = [_addressed(value) for value in getattr(self, key)]
            chosen[key] = [value for wanted in (name, "") for address, value in parts if address == wanted]
        roots = [Path(root) for root in chosen.pop("image_root")]
        return replace(self, image_root=roots, **chosen)


def _addressed(value: str | Path) -> tuple[str, str]:
    """The set's name, empty where none is said, and the value."""
    found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", str(value))
    return (found[1], found[2]) if found else ("", str(value))


def guess_csv(file: Path, wishes: Wishes, *, labelled: bool, project: Path) -> tuple[Path, Options]:
    """The folder that holds table and pictures, which DVC is to track, and the adapter's options relative to it."""
    table = open_table(file)
    rows = [cells for _, cells in islice(table.rows(), ROWS_TRIED)]
    image, root = _picture_column(table, rows, wishes)
    folder = _common_folder(file, root, project)
    label = _column(table, "label", wishes.label_column) if labelled else None
    if labelled and label is None:
        raise DataError(f"{_no_column(table, 'label')}; name it by --label-column")
    options = Options(
        csv=Path(os.path.relpath(file, folder)),
        images=Path(os.path.relpath(root, folder)),
        image=image,
        label=label,
        subject=_column(table, "subject", wishes.subject_column),
        split=_split_column(table, wishes) if labelled else None,
        missing="reject" if wishes.reject_missing else "error",
    )
    return folder, options


def _no_column(table: Table, kind: str) -> str:
    return f"no column of {table.file} looks like the {kind}'s; found {', '.join(map(repr, table.columns))}"


def _candidates(table: Table, kind: str, wished: Sequence[str]) -> list[str]:
    if wished:
        found = [name for name in wished if name in table.columns]
        return found[:1] or [table.columns[table.position(wished[0])]]
    usual = NAMES[kind].split()
    return [name for name in table.columns if "".join(filter(str.isalnum, name.lower())) in usual]


def _column(table: Table, kind: str, wished: Sequence[str]) -> str | None:
    found = _candidates(table, kind, wished)
    if len(found) > 1:
        raise DataError(
            f"{table.file} has several columns that may be the {kind}'s: {', '.join(map(repr, found))}; name one by "
            f"--{kind}-column"
        )
    return found[0] if found else None


def _split_column(table: Table, wishes: Wishes) -> str | None:
    """A column called `set` that holds other things than splits is none, unless the user names it."""
    column = _column(table, "split", wishes.split_column)
    if column is None or wishes.split_column:
        return column
    place = table.position(column)
    return column if any(cells[place].strip().lower() in SPLITS for _, cells in table.rows()) else None


def _picture_column(table: Table, rows: Sequence[Sequence[str]], wishes: Wishes) -> tuple[str, Path]:
    """Column and root together: of several columns the one whose files are there."""
    columns = _candidates(table, "image", wishes.image_column)
    if not columns:
        raise DataError(f"{_no_column(table, 'image')}; name it by --image-column")
    tried: list[Path] = []
    best: list[tuple[str, Path]] = []
    for roots in _roots(table.file, wishes):
        tried += roots
        best = _most_found(table, rows, columns, roots)
        if best:
            break
    else:
        first = rows[0][table.position(columns[0])] if rows else "(no row)"
        raise DataError(
            f"none of the first pictures that {table.file} lists (first: {first}) is in "
            f"{', '.join(str(root) for root in tried[:8])}; name their folder by --image-root"
        )
    if len({column for column, _ in best}) > 1:
        raise DataError(
            f"{table.file} has several columns that name pictures: {', '.join(repr(column) for column, _ in best)}; "
            f"name one by --image-column"
        )
    if len(best) > 1:
        raise DataError(
            f"the pictures that {table.file} lists are in several folders: {', '.join(str(root) for _, root in best)}; "
            f"name one by --image-root"
        )
    return best[0]


def _most_found(
    table: Table, rows: Sequence[Sequence[str]], columns: Sequence[str], roots: Sequence[Path]
) -> list[tuple[str, Path]]:
    """The columns and roots of which most of the first rows' pictures are there."""
    best: list[tuple[str, Path]] = []
    most = 0
    for column in columns:
        place = table.position(column)
        names = [cells[place].strip().replace("\\", "/") for cells in rows]
        for root in roots:
            there = sum(bool(name) and (root / name).is_file() for name in names)
            if there > most:
                best, most = [], there
            if there == most and there and not any(c == column and os.path.samefile(r, root) for c, r in best):
                best.append((column, root))
    return best


def _roots(file: Path, wishes: Wishes) -> Iterator[list[Path]]:
    """Where pictures may lie, tried in turn: what the user named; else beside and below the table, then above it."""
    if wishes.image_root:
        for root in wishes.image_root:
            yield [root if root.is_dir() else file.parent / root]
        return
    yield [file.parent, *(folder for folder in sorted(file.parent.iterdir()) if folder.is_dir())]
    # abspath, since the parent of `..` is not `.`
    parent = Path(os.path.abspath(file)).parent.parent
    above = parent if file.is_absolute() else Path(os.path.relpath(parent))
    yield [above, *(above / name for name in ("images", "faces", "pictures") if (above / name).is_dir())]


def _common_folder(file: Path, root: Path, project: Path) -> Path:
    """The deepest folder that holds both; a path is given back relative where both were given so."""
    folder = Path(os.path.commonpath([os.path.abspath(file.parent), os.path.abspath(root)]))
    refused = {Path("/"), Path.home(), *Path(os.path.abspath(project)).parents, Path(os.path.abspath(project))}
    if folder in refused or folder.resolve() in refused:
        raise DataError(
            f"the folder that holds both {file} and the pictures in {root} is {folder}, which DVC would have to hash "
            f"whole; put the table and the pictures into a folder of their own"
        )
    return folder if file.is_absolute() or root.is_absolute() else Path(os.path.relpath(folder))
