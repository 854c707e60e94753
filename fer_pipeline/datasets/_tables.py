"""Read a delimited text file as a stream: its columns, and its rows with line numbers.

Encoding and delimiter are guessed where one answer is obvious: a byte order mark or UTF-8; the delimiter that cuts the
first line into most columns. Anything else is an error that names the setting to give.
"""

import codecs
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.core.errors import DataError

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
    encoding = encoding or _guess_encoding(file)
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


def _guess_encoding(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


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
