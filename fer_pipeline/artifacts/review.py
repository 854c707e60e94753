"""Read, merge and write what people say of pool faces: `data/review.csv`, which git tracks and `mine` reads.

UTF-8 CSV with the columns `face_id`, `set` (the pool), `content` (hex of its 16 bytes in `artifacts.contents`),
`verdict`, `label` (a class), `who`, `when` (ISO 8601 with a time zone, kept as UTC to the millisecond) and `sample`:

- `right X`: the face shows X, as which it was mined;
- `wrong X`: it does not show X, and nothing else is known;
- `other X`: it shows X, as which it was not mined; `other` without a label: it shows none of the classes;
- `withdrawn`: what this person said of the picture before is taken back. Merging drops it with all that is older;
- no verdict: the face is still to be judged, `label` is what it was mined as. Such rows are for lists; merging drops
  them.

A verdict is bound to the picture: where a face has another content now, or is gone, it is not used. `sample` holds the
seeds of the random draws (`mined sample`) that the face was in, with blanks between; only these faces tell the
precision of what was mined. Who hands a list on keeps that column; a file without it has none.

The same rows give the same bytes, whatever the order in which they were merged: sorted by set, face, content and
person. Of one person's verdicts about one picture the newest counts.
"""

import csv
import fcntl
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fer_pipeline.core.documents import brief
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_lines, write_text

RIGHT, WRONG, OTHER, WITHDRAWN, UNJUDGED = "right", "wrong", "other", "withdrawn", ""
VERDICTS = (RIGHT, WRONG, OTHER, WITHDRAWN)
MOST_BYTES = 2**26
MOST_LETTERS = 200  # of a person's name
CONTENT, SAMPLE = re.compile(r"[0-9a-f]{32}"), re.compile(r"(\d{1,18}( \d{1,18})*)?", re.ASCII)


class Judgement(NamedTuple):
    """One row: what one person says of one picture."""

    face_id: str
    set: str
    content: str
    verdict: str = UNJUDGED
    label: str = ""
    who: str = ""
    when: str = ""
    sample: str = ""

    @property
    def picture(self) -> tuple[str, str, str]:
        """Which picture of which face of which set."""
        return self.set, self.face_id, self.content


COLUMNS = Judgement._fields
HEADER = ",".join(COLUMNS)


def parse_review(
    data: bytes, name: str | Path, *, classes: Sequence[str], who: str = "", when: str = ""
) -> list[Judgement]:
    """Returns the rows of a review file, judged or not; what is wrong with one is a DataError with the row's number.

    Rows are counted as a spreadsheet does: the columns' names are row 1, the first Judgement is of row 2.

    Args:
        data: The file's bytes.
        name: What errors call it.
        classes: The labels that there are.
        who: Who gave the verdicts that name nobody.
        when: When those without a time were given.
    """
    if len(data) > MOST_BYTES:
        raise DataError(f"{name} has {len(data):,} bytes, at most {MOST_BYTES:,} are read; divide it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, row {row}, is no text in UTF-8; save it as CSV in UTF-8") from None
    stream = io.StringIO(text.rstrip("\r\n"), newline="")
    reader = csv.reader(read_lines(stream.readline, Path(name)), strict=True)
    rows: list[Judgement] = []
    number = 1
    try:
        columns = next(reader, [])
        if sorted(columns) not in (sorted(COLUMNS), sorted(COLUMNS[:-1])):
            raise DataError(f"{name} has the columns {brief(','.join(columns))}, expected {HEADER}; correct its row 1")
        number = 2
        for cells in reader:
            if len(cells) != len(columns):
                raise ValueError(f"has {len(cells)} cells, expected {len(columns)}")
            filled = dict(zip(columns, cells, strict=True))
            if filled["verdict"]:
                filled |= {key: filled[key] or value for key, value in (("who", who), ("when", when))}
            rows.append(_check(Judgement(**filled), classes))
            number += 1
    except (csv.Error, ValueError) as error:
        raise DataError(f"{name}, row {number}, {error}; correct or remove it") from None
    return rows


def _check(row: Judgement, classes: Sequence[str]) -> Judgement:
    """Returns a row in the form in which it is kept; a ValueError says what is wrong with it."""
    if nul := [key for key, cell in zip(COLUMNS, row, strict=True) if "\0" in cell]:
        raise ValueError(f"has a NUL in {nul[0]}")
    if not (row.face_id and row.set):
        raise ValueError("names no face_id or no set")
    content = row.content.lower()
    if not CONTENT.fullmatch(content):
        raise ValueError(f"has the content {brief(row.content)}, expected the 32 hex digits of the picture")
    if not SAMPLE.fullmatch(row.sample):
        raise ValueError(f"has the sample {brief(row.sample)}, expected nothing or the seeds of draws")
    if row.verdict not in (UNJUDGED, *VERDICTS):
        raise ValueError(f"has the verdict {brief(row.verdict)}, expected {', '.join(VERDICTS)} or nothing")
    if row.label not in classes and (row.label or row.verdict not in (UNJUDGED, OTHER, WITHDRAWN)):
        raise ValueError(f"has the label {brief(row.label)}, expected one of {', '.join(classes)}")
    if row.verdict == UNJUDGED:
        return row._replace(content=content, who="", when="")
    who = row.who.strip()
    if not who:
        raise ValueError("does not say who gave the verdict: write it there (`mined review` takes --who NAME)")
    if len(who) > MOST_LETTERS:
        raise ValueError(f"has a name of {len(who):,} letters in who, at most {MOST_LETTERS} are kept")
    return row._replace(content=content, who=who, when=_utc(row.when))


def _utc(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError
        return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        form = "expected a time of ISO 8601 with its zone, for example 2026-11-28T09:30:00Z"
        raise ValueError(f"has {brief(text)} in when, {form}") from None


def read_review(path: Path, *, classes: Sequence[str], who: str = "", when: str = "") -> list[Judgement]:
    """Reads a review file as `parse_review` does; one that cannot be read is a DataError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; make it with the line {HEADER}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file that can") from None
    return parse_review(data, path, classes=classes, who=who, when=when)


@contextmanager
def changing_review(path: Path) -> Iterator[None]:
    """Waits until no other program changes a review file; where the file system has no locks it does not wait."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def merge_reviews(*parts: Iterable[Judgement]) -> list[Judgement]:
    """Merges verdicts in any order: each person's newest about each picture, with all draws that the picture was in.

    A newest one that is withdrawn leaves no row.
    Two verdicts of one person about one picture that differ and are equally new are a DataError.
    """
    groups: dict[tuple[str, ...], list[Judgement]] = defaultdict(list)
    samples: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for row in (row for rows in parts for row in rows if row.verdict):
        groups[*row.picture, row.who].append(row)
        samples[row.picture].update(map(int, row.sample.split()))
    merged = []
    for _, group in sorted(groups.items()):
        when = max(row.when for row in group)
        newest = {(row.verdict, row.label): row for row in group if row.when == when}
        if len(newest) > 1:
            said = " and ".join(sorted(f"{verdict} {label}".strip() for verdict, label in newest))
            one = group[0]
            raise DataError(
                f"{brief(one.who)} says of the face {brief(one.face_id)} of {brief(one.set)} both {said} at {when}; "
                "remove one of these rows"
            )
        row = next(iter(newest.values()))
        if row.verdict != WITHDRAWN:
            merged.append(row._replace(sample=" ".join(map(str, sorted(samples[row.picture])))))
    return merged


def format_review(rows: Iterable[Judgement]) -> str:
    """Returns the text of a review file with these rows, in their order."""
    lines = []
    for row in (COLUMNS, *rows):
        stream = io.StringIO(newline="")
        csv.writer(stream).writerow(row)  # which ends in both line breaks, and so quotes a cell with either of them
        lines.append(stream.getvalue().removesuffix("\r\n") + "\n")
    return "".join(lines)


def write_review(path: Path, rows: Iterable[Judgement]) -> None:
    """Writes a review file, whole or not at all."""
    write_text(path, format_review(rows))
