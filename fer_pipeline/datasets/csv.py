"""Read a table of pictures, one sample a row: columns of any name for picture, label, subject and split.

Source: the lists that published sets come with (RAF-DB, AffectNet, ExpW); read by Python's `csv`, that is RFC 4180 with
a delimiter of choice. Encoding and delimiter are guessed where one answer is obvious: a byte order mark or UTF-8; the
delimiter that cuts the first line into most columns, else blanks where every row has as many words. Anything else is an
error that names the setting to give. The label is given as it stands there: mapping names to classes is `align`'s, by
the settings. A picture may be listed without its suffix, in other capitals or with its accents in another form; its id
is the file's name. One that is missing, listed twice or outside the image root is an error before any work; with
`missing: reject` a missing one is passed on, so that `align` rejects it with a reason and a count.
"""

import codecs
import csv
import io
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

import numpy as np
from pydantic import Field

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.files import LONGEST_LINE, read_lines, refuse_stand_in
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split
from fer_pipeline.datasets._files import (
    PICTURE_SUFFIXES,
    SPLITS,
    PictureRoot,
    find_only_file,
    is_absolute,
    parse_split,
    picture_id,
    read_range,
)

DELIMITERS = (",", ";", "\t", "|")
BLANK = " "  # any number of blanks; guessed only where all rows have as many words, since names may hold blanks
ROWS_TRIED = 50
SHOWN = 50  # columns in a message, and characters of the name of one
SHOWN_NAME = 300  # characters of a picture's name in a message
MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",  # the beginning of UTF-32's too
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "Parquet",
}


@dataclass(frozen=True)
class Table:
    """A delimited text file; `columns` as its first line (or the settings) name them, stripped of blanks."""

    file: Path
    columns: tuple[str, ...]
    delimiter: str
    encoding: str
    has_header: bool

    @property
    def lacks_header(self) -> bool:
        """Whether the first line, taken for names of columns, names a picture instead."""
        return self.has_header and any(is_picture(name) for name in self.columns)

    def position(self, column: str, kind: str) -> int:
        """Returns the index of a named column; one that is not there, or twice, is an OptionError that lists all.

        Args:
            column: Its name.
            kind: The option that names it.
        """
        number = self.columns.count(column.strip())
        if number != 1:
            fault = f"has {number} columns called" if number else "has no column"
            more = f" and {len(self.columns) - SHOWN:,} more" if len(self.columns) > SHOWN else ""
            found = ", ".join(repr(name[:SHOWN]) for name in self.columns[:SHOWN])
            fault = f"{self.file} {fault} {column!r}; found {found}{more}"
            if self.lacks_header:
                raise OptionError(f"{fault}, which is a row and no line of names", columns="[NAME, NAME, …]")
            raise OptionError(fault, **{kind: "NAME"})
        return self.columns.index(column.strip())

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields (line number, cells) of every row that is not blank; too few or too many cells are an OptionError."""
        lines = _lines(self.file, self.delimiter, self.encoding)
        if self.has_header:
            next(lines, None)
        for number, cells in lines:
            if len(cells) != len(self.columns):
                raise OptionError(
                    f"{self.file}, line {number}: {len(cells)} cells where {len(self.columns)} columns are named; "
                    f"correct the line (a {self.delimiter!r} inside a cell needs quotes)",
                    delimiter="MARK",
                    **({} if self.has_header else {"columns": "[NAME, NAME, …]"}),
                )
            yield number, cells


def is_picture(name: str) -> bool:
    """Tells whether a cell names a picture's file."""
    return PurePosixPath(name.strip().lower()).suffix in PICTURE_SUFFIXES


def open_table(
    file: Path, *, delimiter: str | None = None, encoding: str | None = None, columns: tuple[str, ...] | None = None
) -> Table:
    """Opens the table in `file`; `columns` names those of a file without a header line."""
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise OptionError(f"the table {file} {state}", csv="FILE")
    refuse_stand_in(file)
    encoding = encoding or _guess_encoding(file)
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError):
        raise OptionError(f"{encoding!r} is no known encoding of text", encoding="cp1252, for example") from None
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '\r\n"'):
        raise OptionError(f"the delimiter {delimiter!r} is not one character", delimiter="MARK")
    mark = delimiter or _guess_delimiter(file, encoding)
    _, cells = next(_lines(file, mark, encoding), (0, []))
    if not cells:
        raise DataError(f"{file} is empty; it needs a line of column names and one row a picture")
    names = tuple(cell.strip() for cell in cells) if columns is None else columns
    return Table(file, names, mark, encoding, has_header=columns is None)


def _guess_encoding(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(256)
    if format := next((format for magic, format in OTHER_FORMATS.items() if start.startswith(magic)), None):
        raise DataError(f"{file} is {format}; export or unpack it as a table in plain text (CSV)")
    found = next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8-sig")
    if found == "utf-8-sig" and b"\0" in start:
        wide = "utf-16-be" if start[:1] == b"\0" else "utf-16-le"
        raise OptionError(f"{file} holds zero bytes, as UTF-16 without its mark does", encoding=wide)
    return found


def _guess_delimiter(file: Path, encoding: str) -> str:
    """Returns the delimiter that cuts the first line into most columns."""
    first = {mark: len(next(_lines(file, mark, encoding), (0, []))[1]) for mark in DELIMITERS}
    best = max(first, key=lambda mark: first[mark])
    if first[best] == 1:
        words = {len(cells) for _, cells in islice(_lines(file, BLANK, encoding), ROWS_TRIED)}
        if len(words) == 1 and words != {1}:
            return BLANK
    return best


def _lines(file: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    number = size = 0

    def read_row_by_row(stream: TextIO) -> Iterator[str]:
        nonlocal size
        for line in read_lines(stream.readline, file):
            size += len(line)
            if size > LONGEST_LINE:
                raise csv.Error(f"a row of over {LONGEST_LINE:,} characters")
            # Blanks at the end of a line would be one more cell.
            yield f"{line.rstrip()}\n" if delimiter == BLANK else line

    try:
        with file.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(read_row_by_row(stream), delimiter=delimiter, skipinitialspace=delimiter == BLANK)
            for cells in reader:
                number, size = reader.line_num, 0
                if any(cell.strip() for cell in cells):
                    yield number, cells
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        fault = f"{file} is not {encoding} ({reason}, after line {number})"
        raise OptionError(fault, encoding="cp1252, for example") from None
    except csv.Error as error:
        raise DataError(
            f"{file}, after line {number}: {error}; correct the line, perhaps a quote that never ends"
        ) from None


class Options(Settings):
    """Names of files (relative to the data set's path) and of columns."""

    csv: Path | None = None  # where `path` is a folder; null: its only .csv file
    images: Path = Path(".")  # what the image column is relative to
    prefixes: tuple[str, ...] = ()  # beginnings of its names that are cut off: of absolute paths on another machine
    ending: str = ""  # what stands in a picture's name behind the stem that is listed, if not its suffix: _aligned.jpg
    image: str = "image"
    label: str | None = None
    subject: str | None = None
    split: str | None = None
    split_by_name: bool = False  # a folder or the beginning of the file's name is the split: test/1.jpg, test_1.jpg
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
    return find_only_file(path, ".csv", csv="FILE (or name it as the path itself)")


def picture_name(cell: str, prefixes: Sequence[str], ending: str, *, where: str) -> str:
    """Returns a picture's name below the image root: what is listed, without its beginning and with the ending."""
    name = cell.strip()
    if prefixes:
        plain = name.replace("\\", "/")
        if not (known := [prefix for prefix in prefixes if plain.startswith(prefix)]):
            raise OptionError(f"{where}: {name!r} begins with none of {', '.join(prefixes)}", prefixes="[BEGINNING]")
        name = plain.removeprefix(max(known, key=len))
    return (name[: name.rindex(".")] if is_picture(name) else name) + ending if name and ending else name


def split_of_name(name: str) -> str | None:
    """Returns the first word in a picture's name that is a split: a folder, or letters at the beginning of the file."""
    *folders, file = name.replace("\\", "/").lower().split("/")
    words = (*folders, *re.findall(r"^[a-z]+", file))
    return next((word for word in words if word in SPLITS), None)


def _rows(table: Table, root: PictureRoot, options: Options) -> Iterator[tuple[int, Sample]]:
    image = table.position(options.image, "image")
    columns = {"label": options.label, "subject": options.subject, "split": options.split}
    places = {kind: table.position(name, kind) for kind, name in columns.items() if name is not None}
    for line, cells in table.rows():
        where = f"{table.file}, line {line}"
        name = picture_name(cells[image], options.prefixes, options.ending, where=where)
        if not name:
            raise DataError(f"{where}: the column {options.image!r} is empty; name the picture or remove the line")
        file = root.locate(name, where=where)
        if "\\" in name and not os.path.exists(file):
            # Lists made on Windows separate folders by backslashes.
            file = root.locate(name.replace("\\", "/"), where=where)
        words = {kind: cells[place].strip() or None for kind, place in places.items()}
        split = words.get("split") or (split_of_name(name) if options.split_by_name else None)
        sample = Sample(
            id=picture_id(file.relative_to(root.folder).as_posix()),
            split=parse_split(split, options.splits, where=where) if split else None,
            label=words.get("label"),
            subject=words.get("subject"),
            path=file,
        )
        yield line, sample


def _check(table: Table, root: PictureRoot, options: Options) -> None:
    hashes = array("q")  # of the ids, which may be millions
    missing, first = 0, ""
    for line, sample in _rows(table, root, options):
        hashes.append(hash(sample.id))
        if os.path.isfile(sample.path):
            continue
        if os.path.exists(sample.path):
            raise DataError(f"{table.file}, line {line}: {sample.path} is no plain file; correct or remove the row")
        if options.missing == "error":
            first = first or sample.path.relative_to(root.folder).as_posix()
            missing += 1
    if not hashes:
        raise DataError(f"{table.file} has no row below its column names; it needs one row a picture")
    values, numbers = np.unique(hashes, return_counts=True)
    if len(values) < len(hashes):
        _refuse_doubles(table, root, options, frozenset(values[numbers > 1].tolist()))
    if missing:
        fault = (
            f"{missing:,} of {len(hashes):,} pictures that {table.file} lists are not in {root.folder} (first: "
            f"{first[:SHOWN_NAME]}{root.suggest(first)})"
        )
        if is_absolute(first):
            raise OptionError(f"{fault}, but by their place on another machine", prefixes="[BEGINNING] (it is cut off)")
        raise OptionError(fault, images="FOLDER", missing="reject")


def _refuse_doubles(table: Table, root: PictureRoot, options: Options, hashes: frozenset[int]) -> None:
    """Refuses the first picture that is listed twice, among those of some hashes."""
    seen: dict[str, int] = {}
    for line, sample in _rows(table, root, options):
        if sample.id in seen:
            raise DataError(
                f"{table.file} lists {sample.id!r} twice, in lines {seen[sample.id]} and {line}; keep one of the rows"
            )
        if hash(sample.id) in hashes:
            seen[sample.id] = line
