"""Guess the settings of the `csv` adapter from a table of pictures, where one answer is obvious.

A column is guessed by its name, the image root by where the pictures of the first rows are. No answer, or more than
one, is one line that lists the candidates and names the option that decides.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.datasets._files import SPLITS
from fer_pipeline.datasets.csv import Options, Table, open_table

USUAL_NAMES = {
    "image": "image images img imgs file files filename filepath path imagepath imagename imagefile imageid "
    "picture pic photo subdirectoryfilepath",
    "label": "label labels emotion emotions expression class category emotionlabel expressionlabel",
    "subject": "subject subjectid identity identityid person personid participant participantid actor",
    "split": "split usage set subset partition",
}
ROWS_TRIED = 50
PER_SET = ("image_root", "image_column", "label_column", "subject_column", "split_column")


@dataclass(frozen=True)
class ColumnChoices:
    """What the user chose: `value` for every table, or `set=value` for one; several are tried in turn."""

    image_root: Sequence[str | Path] = ()
    image_column: Sequence[str] = ()
    label_column: Sequence[str] = ()
    subject_column: Sequence[str] = ()
    split_column: Sequence[str] = ()
    reject_missing: bool = False

    def named_sets(self) -> set[str]:
        """Returns the sets that are named."""
        return {_split_set(value)[0] for key in PER_SET for value in getattr(self, key)} - {""}

    def for_set(self, name: str) -> "ColumnChoices":
        """Returns the choices for one set: first those that name it, then those that name none."""
        chosen: dict[str, list[str]] = {}
        for key in PER_SET:
            values = [_split_set(value) for value in getattr(self, key)]
            chosen[key] = [value for wanted in (name, "") for address, value in values if address == wanted]
        return replace(self, **chosen)


def _split_set(value: str | Path) -> tuple[str, str]:
    """The set's name, empty where none is given, and the value."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", str(value))
    return (match[1], match[2]) if match else ("", str(value))


def guess_csv(file: Path, choices: ColumnChoices, *, labelled: bool, project: Path) -> tuple[Path, Options]:
    """Returns the folder that holds table and pictures, which DVC is to track, and the options relative to it."""
    table = open_table(file)
    image, root = _find_pictures(table, choices)
    folder = _common_folder(file, root, project)
    label = _find_column(table, "label", choices.label_column) if labelled else None
    if labelled and label is None:
        raise _no_column(table, "label")
    options = Options(
        csv=Path(os.path.relpath(file, folder)),
        images=Path(os.path.relpath(root, folder)),
        image=image,
        label=label,
        subject=_find_column(table, "subject", choices.subject_column),
        split=_find_split_column(table, choices) if labelled else None,
        missing="reject" if choices.reject_missing else "error",
    )
    return folder, options


def _no_column(table: Table, kind: str) -> DataError:
    columns = ", ".join(map(repr, table.columns))
    return DataError(f"no column of {table.file} looks like the {kind}'s; found {columns}; name it by --{kind}-column")


def _candidates(table: Table, kind: str, chosen: Sequence[str]) -> list[str]:
    if chosen:
        present = [name for name in chosen if name in table.columns]
        return present[:1] or [table.columns[table.position(chosen[0])]]
    usual = USUAL_NAMES[kind].split()
    return [name for name in table.columns if "".join(filter(str.isalnum, name.lower())) in usual]


def _find_column(table: Table, kind: str, chosen: Sequence[str]) -> str | None:
    columns = _candidates(table, kind, chosen)
    if len(columns) > 1:
        raise DataError(
            f"{table.file} has several columns that may be the {kind}'s: {', '.join(map(repr, columns))}; name one by "
            f"--{kind}-column"
        )
    return columns[0] if columns else None


def _find_split_column(table: Table, choices: ColumnChoices) -> str | None:
    """A column called `set` without names of splits is none, unless the user names it."""
    column = _find_column(table, "split", choices.split_column)
    if column is None or choices.split_column:
        return column
    position = table.position(column)
    return column if any(cells[position].strip().lower() in SPLITS for _, cells in table.rows()) else None


def _find_pictures(table: Table, choices: ColumnChoices) -> tuple[str, Path]:
    """Column and root together: of several columns the one whose files exist."""
    columns = _candidates(table, "image", choices.image_column)
    if not columns:
        raise _no_column(table, "image")
    rows = [cells for _, cells in islice(table.rows(), ROWS_TRIED)]
    tried: list[Path] = []
    best: list[tuple[str, Path]] = []
    for roots in _roots(table.file, choices):
        tried += roots
        if best := _best_pairs(table, rows, columns, roots):
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


def _best_pairs(
    table: Table, rows: Sequence[Sequence[str]], columns: Sequence[str], roots: Sequence[Path]
) -> list[tuple[str, Path]]:
    """The columns and roots with the most existing pictures; a folder under two names counts once."""
    counts: dict[tuple[str, Path], int] = {}
    for column in columns:
        names = [cells[table.position(column)].strip().replace("\\", "/") for cells in rows]
        counts |= {(column, root): sum(bool(name) and (root / name).is_file() for name in names) for root in roots}
    most, best = max(counts.values(), default=0), []
    for (column, root), count in counts.items():
        if count == most > 0 and not any(c == column and os.path.samefile(r, root) for c, r in best):
            best.append((column, root))
    return best


def _roots(file: Path, choices: ColumnChoices) -> Iterator[list[Path]]:
    """Where pictures may be, tried in turn: what the user named; else beside and below the table, then above it."""
    if choices.image_root:
        for root in map(Path, choices.image_root):
            yield [root if root.is_dir() else file.parent / root]
        return
    yield [file.parent, *(folder for folder in sorted(file.parent.iterdir()) if folder.is_dir())]
    # abspath, since the parent of `..` is not `.`
    parent = Path(os.path.abspath(file)).parent.parent
    above = parent if file.is_absolute() else Path(os.path.relpath(parent))
    yield [above, *(above / name for name in ("images", "faces", "pictures") if (above / name).is_dir())]


def _common_folder(file: Path, root: Path, project: Path) -> Path:
    """The deepest folder that holds both, relative where both were given so."""
    folder = Path(os.path.commonpath([os.path.abspath(file.parent), os.path.abspath(root)]))
    here = Path(os.path.abspath(project))
    if {folder, folder.resolve()} & {Path("/"), Path.home(), here, *here.parents}:
        raise DataError(
            f"the folder that holds both {file} and the pictures in {root} is {folder}, which DVC would have to hash "
            f"whole; put the table and the pictures into a folder of their own"
        )
    return folder if file.is_absolute() or root.is_absolute() else Path(os.path.relpath(folder))
