"""Read a table of pictures, one sample a row: columns of any name for picture, label, subject and split.

Source: the lists that published sets come with (RAF-DB, AffectNet, ExpW); read by Python's `csv`, that is RFC 4180 with
a delimiter of choice. Encoding and delimiter are guessed where one answer is obvious: a byte order mark or UTF-8; the
delimiter that cuts the first line into most columns. Anything else is an error that names the setting to give. The
label is given as it stands there: mapping names to classes is `align`'s, by the settings. A picture may be listed
without its suffix, in other capitals or with its accents in another form; its id is the file's name. One that is
missing, listed twice or outside the image root is an error before any work; with `missing: reject` a missing one is
passed on, so that `align` rejects it with a reason and a count.
"""

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.datasets._files import PictureRoot, find_only_file, parse_split, picture_id, read_range

DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """A delimited text file; `columns` as its first line (or the settings) name them, stripped of blanks."""

    file: Path
    columns: tuple[str, ...]
    delimiter: str
    encoding: str
    has_header: bool

    def position(self, column: str) -> int:
        """Returns the index of a named column; one that is not there, or twice, is a DataError that lists all."""
        number = self.columns.count(column.strip())
        if number != 1:
            fault = f"has {number} columns called" if number else "has no column"
            raise DataError(
                f"{self.file} {fault} {column!r}; found {', '.join(map(repr, self.columns))}; name the column in "
                f"the data set's options"
            )
        return self.columns.index(column.strip())

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, cells) of every row that is not blank; too few or too many cells are a DataError."""
        lines = _lines(self.file, self.delimiter, self.encoding)
        if self.has_header:
            next(lines, None)
        for number, cells in lines:
            if len(cells) != len(self.columns):
                raise DataError(
                    f"{self.file}, line {number}: {len(cells)} cells where {len(self.columns)} columns are named; "
                    f"correct the line (a {self.delimiter!r} inside a cell needs quotes) or set options.delimiter"
                )
            yield number, cells


def open_table(
    file: Path, *, delimiter: str | None = None, encoding: str | None = None, columns: tuple[str, ...] | None = None
) -> Table:
    """Opens the table in `file`; `columns` names those of a file without a header line."""
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"the table {file} {state}; correct the data set's path or options.csv")
    if not encoding:
        with file.open("rb") as stream:
            is_utf_16 = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf_16 else "utf-8-sig"
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise DataError(f"{encoding!r} is no known encoding; set options.encoding, for example cp1252") from None
    marks = (delimiter,) if delimiter else DELIMITERS
    first_lines = [(mark, next(_lines(file, mark, encoding), (0, []))[1]) for mark in marks]
    best, cells = max(first_lines, key=lambda item: len(item[1]))
    if not cells:
        raise DataError(f"{file} is empty; it needs a line of column names and one row a picture")
    names = tuple(cell.strip() for cell in cells) if columns is None else columns
    return Table(file, names, best, encoding, has_header=columns is None)


def _lines(file: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        with file.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter)
            for cells in reader:
                number = reader.line_num
                if any(cell.strip() for cell in cells):
                    yield number, cells
    except UnicodeError as error:
        raise DataError(
            f"{file} is not {encoding} ({error.reason if isinstance(error, UnicodeDecodeError) else error}, after line "
            f"{number}); set options.encoding, for example cp1252"
        ) from None
    except csv.Error as error:
        raise DataError(
            f"{file}, after line {number}: {error}; correct the line, perhaps a quote that never ends"
        ) from None


class Options(Settings):
    """Names of files (relative to the data set's path) and of columns."""

    csv: Path | None = None  # where `path` is a folder; null: its only .csv file
    images: Path = Path(".")  # what the image column is relative to
    image: str = "image"
    label: str | None = None
    subject: str | None = None
    split: str | None = None
    splits: dict[str, Split] = Field(default_factory=dict)  # word in the split column -> split, beside the usual words
    columns: tuple[str, ...] | None = None  # names of the columns where the file has no header line
    delimiter: str | None = None
    encoding: str | None = None
    missing: Literal["error", "reject"] = "error"
    follow_links: bool = False  # symbolic links out of the image root, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields one sample per row, in the order of the table; the whole table is checked before the first."""
    table = open_table(
        find_table(path, options), delimiter=options.delimiter, encoding=options.encoding, columns=options.columns
    )
    root = PictureRoot((path if path.is_dir() else path.parent) / options.images, follow_links=options.follow_links)
    _check(table, root, options)
    yield from (sample for _, sample in _rows(table, root, options))


read = read_range  # a picture's file as it is


def find_table(path: Path, options: Options) -> Path:
    """Returns the table's file: `path` itself, the one the options name, or the only .csv in the folder."""
    if options.csv is not None and path.is_dir():
        return path / options.csv
    return find_only_file(path, ".csv", remedy="name it in options.csv, or as the path itself")


def _rows(table: Table, root: PictureRoot, options: Options) -> Iterator[tuple[int, Sample]]:
    image = table.position(options.image)
    columns = {"label": options.label, "subject": options.subject, "split": options.split}
    places = {kind: table.position(name) for kind, name in columns.items() if name is not None}
    for line, cells in table.rows():
        where = f"{table.file}, line {line}"
        name = cells[image].strip()
        if not name:
            raise DataError(f"{where}: the column {options.image!r} is empty; name the picture or remove the line")
        try:
            file = root.locate(name)
            if "\\" in name and not file.exists():
                # Lists made on Windows separate folders by backslashes.
                file = root.locate(name.replace("\\", "/"))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        words = {kind: cells[place].strip() or None for kind, place in places.items()}
        split = words.get("split")
        sample = Sample(
            id=picture_id(file.relative_to(root.folder).as_posix()),
            split=parse_split(split, options.splits, where=where, remedy="set options.splits") if split else None,
            label=words.get("label"),
            subject=words.get("subject"),
            path=file,
        )
        yield line, sample


def _check(table: Table, root: PictureRoot, options: Options) -> None:
    seen: dict[str, int] = {}
    missing: list[Sample] = []
    for line, sample in _rows(table, root, options):
        if sample.id in seen:
            raise DataError(
                f"{table.file} lists {sample.id!r} twice, in lines {seen[sample.id]} and {line}; keep one of the rows"
            )
        seen[sample.id] = line
        if sample.path.is_file():
            continue
        if sample.path.exists():
            raise DataError(f"{table.file}, line {line}: {sample.path} is no plain file; correct or remove the row")
        if options.missing == "error":
            missing.append(sample)
    if not seen:
        raise DataError(f"{table.file} has no row below its column names; it needs one row a picture")
    if missing:
        first = f"{missing[0].id}{root.suggest(str(missing[0].path))}"
        raise DataError(
            f"{len(missing):,} of {len(seen):,} pictures that {table.file} lists are not in {root.folder} (first: "
            f"{first}); set options.images to their folder, or options.missing: reject"
        )
