"""Read the published CSV of FER2013, one sample a row; a row's 48 by 48 grey values are given back as a PNG.

Source: Goodfellow et al., arXiv:1307.0414, as Kaggle publishes it: `fer2013.csv` (emotion, pixels, Usage) or
`icml_face_data.csv` (the same columns in another order, names with blanks); its `train.csv` and `test.csv`, which lack
columns, are read too. The file is read as a stream and a sample keeps the range of bytes of its pixels, so that reading
is random access. `Training` is train, `PublicTest` val and `PrivateTest` test, as the challenge used them. A sample is
named `fer0000000` by its row.

With `votes` the labels are those of FER+ (Barsoum et al., arXiv:1608.01041), whose `fer2013new.csv` has for each row
the votes of ten people over eight expressions, `unknown` and `NF` (no face). They are joined by row, since the names of
FER+ are not those of the rows. The rule is that of its published code for what is measured: a class with one vote has
none, and a class needs more than half of the votes that are left. Rows without such a class, or whose class is unknown
or no face, are left out and counted; of the published file 25,060, 3,199 and 3,153 rows remain. Its authors' other
file, `label.csv`, has other votes for one row in twenty-seven, and is not read.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.files import read_lines, refuse_stand_in
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import parse_split, read_range

VERSION = 1  # of `read`
EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FILE_NAMES = ("fer2013.csv", "icml_face_data.csv")
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
NO_CLASS = {"unknown": "picture voted unknown", "NF": "picture voted no face", None: "picture without a majority"}
MOST_VOTES = 1_000  # of one picture and class; there are ten


class Options(Settings):
    """`file` where `path` is a folder; the side of a picture in pixels; FER+'s table in that folder, for its labels."""

    file: str | None = None
    size: int = 48
    votes: str | None = None


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields one sample per row, in the order of the file; with votes, one per row that they give a class."""
    rows = _rows(_find(path, options))
    if options.votes is None:
        yield from rows
        return
    votes = _votes(path, options.votes)
    for sample, vote in zip_longest(rows, votes):
        if sample is None or vote is None:
            fewer = "that of the pictures" if sample is None else options.votes
            raise DataError(f"{path}: expected equally many rows in both files, found fewer in {fewer}; fetch it again")
        split, label = vote
        if sample.split not in (split, None):
            raise DataError(
                f"{path}: {sample.id} is of {sample.split}, but of {split} in {options.votes}, which is joined by row; "
                f"fetch both files again"
            )
        if label not in NO_CLASS:
            yield replace(sample, label=label, split=split)


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind the rows to which the votes give no class."""
    if options.votes is None:
        return Counter()
    votes = _votes(path, options.votes)
    return Counter(NO_CLASS[label] for _, label in votes if label in NO_CLASS)


def read(sample: Sample, options: Options) -> bytes:
    """Returns the row's pixels as a grey PNG; DataError where they are not size times size numbers from 0 to 255."""
    try:
        values = np.array(read_range(sample, options).strip(b' "').split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise DataError(
            f"{sample.id} of {sample.path.name}: the pixels are not numbers; fetch the file again"
        ) from None
    if len(values) != options.size**2 or values.min() < 0 or values.max() > 255:
        raise DataError(
            f"{sample.id} of {sample.path.name}: {len(values)} pixels, expected {options.size**2} from 0 to 255; "
            f"fetch the file again"
        )
    encoded = io.BytesIO()
    Image.fromarray(values.astype(np.uint8).reshape(options.size, options.size)).save(encoded, format="png")
    return encoded.getvalue()


def _find(path: Path, options: Options) -> Path:
    names = FILE_NAMES if options.file is None else (options.file,)
    file = next((file for file in (path, *(path / name for name in names)) if file.is_file()), None)
    if file is None:
        raise OptionError(f"{path} is no file and holds no {' or '.join(names)}", file="FILE")
    refuse_stand_in(file)
    return file


def _rows(file: Path) -> Iterator[Sample]:
    with file.open("rb") as stream:
        lines = read_lines(stream.readline, file)
        header = next(lines, b"")
        columns = [name.strip().strip('"').lower() for name in header.decode("utf-8-sig", "replace").split(",")]
        if "pixels" not in columns:
            raise DataError(
                f"{file} has no column 'pixels'; found {', '.join(repr(name[:50]) for name in columns[:8])}; "
                f"this adapter reads fer2013.csv (emotion,pixels,Usage)"
            )
        start, row = len(header), 0
        for line in lines:
            if line.strip():
                yield _sample(line, start, row, columns, file)
                row += 1
            start += len(line)
    if row == 0:
        raise DataError(f"{file} has no row below its column names; fetch the file again")


def _votes(folder: Path, name: str) -> Iterator[tuple[str, str | None]]:
    """Yields split and class of each row of FER+'s table; None for no majority."""
    file = folder / name
    if folder.is_file():  # DVC follows the path alone
        raise DataError(f"{folder} is a file; with options.votes name the folder that holds both files as the path")
    if not file.is_file():
        raise DataError(
            f"{file} does not exist; put FER+'s fer2013new.csv there or correct the data set's options.votes"
        )
    refuse_stand_in(file)
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = csv.reader(read_lines(stream.readline, file))
        columns = [name.strip() for name in next(rows, [])]
        if any(columns.count(name) != 1 for name in ("Usage", *VOTES)):
            raise DataError(
                f"{file} is no table of votes, with the columns Usage, {', '.join(VOTES)}; name fer2013new.csv"
            )
        places = [columns.index(name) for name in VOTES]
        try:
            for number, row in enumerate(rows):
                where = f"{file}, row {number}"
                cells = [row[place].strip() for place in places] if len(row) == len(columns) else []
                if not cells or not all(
                    cell.isascii() and cell.isdigit() and int(cell[:9]) <= MOST_VOTES for cell in cells
                ):
                    raise DataError(
                        f"{where}: expected {len(columns)} cells with whole numbers of votes; fetch it again"
                    )
                split = parse_split(row[columns.index("Usage")].strip(), None, where=where)
                yield split, _majority([int(cell) for cell in cells])
        except csv.Error as error:
            raise DataError(f"{file} is no table ({error}); fetch it again") from None


def _majority(votes: list[int]) -> str | None:
    counted = [count if count > 1 else 0 for count in votes]
    most = max(counted)
    return VOTES[counted.index(most)] if 2 * most > sum(counted) else None


def _sample(line: bytes, start: int, row: int, columns: list[str], file: Path) -> Sample:
    cells = line.rstrip(b"\r\n").split(b",")
    if len(cells) != len(columns):
        raise DataError(
            f"{file}, row {row} (at byte {start:,}): {len(cells)} cells where {len(columns)} columns are named; "
            f"the file is cut short or damaged, fetch it again"
        )
    place, where = columns.index("pixels"), f"{file}, row {row}"
    texts = [cells[columns.index(name)] if name in columns else b"" for name in ("emotion", "usage")]
    emotion, usage = (text.decode("utf-8", "replace").strip().strip('"') for text in texts)
    known = emotion.isascii() and emotion.isdigit() and int(emotion) < len(EMOTIONS)
    return Sample(
        id=f"fer{row:07d}",
        split=parse_split(usage, None, where=where) if usage else None,
        label=EMOTIONS[int(emotion)] if known else emotion or None,
        subject=None,
        path=file,
        offset=start + sum(len(cell) + 1 for cell in cells[:place]),
        length=len(cells[place]),
    )
