"""Read an MXNet/InsightFace `.rec` (and its `.idx`, where there is one), one sample a picture, without mxnet.

Source: the layout that InsightFace's training code reads: record 0 is a header (flag 2, label = [a, b], no picture),
records 1 to a - 1 are pictures labelled with their identity (a number, or an array whose first value counts), records
a to b - 1 are the identities' ranges. Those without a picture are known by the header's range, and by an empty payload
behind a label array where the file has no header. With an `.idx` a record's name is its key there; without one the file
is read from its start and the name is the record's number: InsightFace's keys are these numbers. Memory is 72 bytes a
record with an `.idx` and constant without.

Source of the frames: dmlc-core `src/recordio.cc` and MXNet `python/mxnet/recordio.py` (the header inside), as specified
there; no code is taken over. A frame is the magic word, a word with a 3-bit continuation flag and a 29-bit length, then
the data padded to 4 bytes. Where the magic word occurs at a multiple of 4 in the data, the writer leaves it out and
splits the record there: flag 1 begins, 2 goes on, 3 ends, and the reader puts the word back between the parts. The data
begin with `IfQQ`: flag, label, id, id2; a flag above 0 is the number of float32 labels that follow. Difference: lengths
are checked against the end of the file, and the number of pictures with the header's, so that a file cut short is
noticed, within a record or between two.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_lines, refuse_stand_in
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import LARGEST_FILE, TooLargeError, find_only_file

MAGIC = 0xCED7230A
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
REMEDY = "fetch or copy the file again and compare its size"
SMALLEST_RECORD = FRAME.size + HEADER.size
SPARE_LINES = 1_000_000  # of an index, for records that a .rec cut short has lost
MOST_PARTS = 1_000  # of a record; the magic word occurs once in 16 GB of pictures
PARTS = "parts"  # the key of a record of several parts
INDEX_REMEDY = "replace it by the whole index, or remove it to read the .rec from its start"


@dataclass(frozen=True, slots=True)
class Record:
    """`labels` are the first two of a label array, or the one label.

    `parts` are the ranges of bytes that hold the header, the labels, and then the `length` bytes of the picture.
    """

    offset: int
    end: int
    flag: int
    labels: tuple[float, ...]
    parts: tuple[tuple[int, int], ...]
    length: int


class RecordFile:
    """A RecordIO file, opened for positional reads; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); correct the data set's path") from None
        self.size = os.fstat(self._descriptor).st_size

    def __enter__(self) -> "RecordFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def record(self, number: int, offset: int) -> Record:
        """Parses the record that begins at `offset`; `number` is its name in messages."""
        start, parts, end = self._parts(number, offset)
        # One read brought the frame, the header and two labels: all of a single-part record but its picture.
        data = start if len(parts) == 1 else self._join(parts)
        length = parts[0][1] if len(parts) == 1 else len(data)
        if length < HEADER.size:
            raise self._damaged(number, offset, f"{length} bytes are too few for the image header's {HEADER.size}")
        flag, label, _, _ = HEADER.unpack_from(data)
        head = HEADER.size + 4 * flag
        if head > length:
            raise self._damaged(number, offset, f"{flag} labels do not fit into its {length} bytes")
        labels = struct.unpack_from(f"<{min(flag, 2)}f", data, HEADER.size) if flag else (label,)
        return Record(offset, end, flag, labels, parts, length - head)

    def picture(self, record: Record) -> bytes:
        """Puts the picture of a record of several parts together."""
        data = self._join(record.parts)
        return data[len(data) - record.length :]

    def read(self, offset: int, length: int) -> bytes:
        """Reads a range of bytes, as many as there are."""
        return (
            os.pread(self._descriptor, length, offset) if offset < self.size else b""
        )  # which may be no offset at all

    def _join(self, parts: tuple[tuple[int, int], ...]) -> bytes:
        return struct.pack("<I", MAGIC).join(self.read(*part) for part in parts)

    def _parts(self, number: int, offset: int) -> tuple[bytes, tuple[tuple[int, int], ...], int]:
        """Returns the first bytes of a record's data, the range of every part's data, and where the record ends."""
        first, parts, place, continuation = b"", [], offset, 1
        while continuation in (1, 2):
            start = self.read(place, FRAME.size + HEADER.size + 8)
            if len(start) < FRAME.size:
                raise self._truncated(number, place)
            magic, word = FRAME.unpack_from(start)
            if magic != MAGIC:
                raise self._damaged(number, place, f"the magic word is 0x{magic:08x}, expected 0x{MAGIC:08x}")
            continuation, length = word >> 29, word & ((1 << 29) - 1)
            if continuation not in ((2, 3) if parts else (0, 1)):
                fault = (
                    "the parts of the record are out of order" if parts else "it goes on a record that nothing begins"
                )
                raise self._damaged(number, place, fault)
            first, end = first or start[FRAME.size :], place + FRAME.size + length
            if end > self.size:
                raise self._truncated(number, offset)
            parts.append((place + FRAME.size, length))
            if len(parts) > MOST_PARTS or (len(parts) > 1 and sum(size for _, size in parts) > LARGEST_FILE):
                raise self._damaged(number, offset, f"it has over {MOST_PARTS:,} parts, or {LARGEST_FILE:,} bytes")
            place = min(end + -(end - offset) % 4, self.size)  # the last record's padding may be missing without loss
        return first, tuple(parts), place

    def _truncated(self, number: int, offset: int) -> DataError:
        return DataError(
            f"{self.path} is truncated: record {number:,} at byte {offset:,} does not end within the file's "
            f"{self.size:,} bytes; {REMEDY}"
        )

    def _damaged(self, number: int, offset: int, fault: str) -> DataError:
        return DataError(
            f"{self.path} is damaged, or its .idx is another file's: record {number:,} at byte {offset:,}: {fault}; "
            f"{REMEDY}"
        )


class Options(Settings):
    """What the numbers in the records mean, and whether the `.idx` beside the `.rec` is used."""

    labels: Literal["subject", "class"] = "subject"
    index: Literal["auto", "none"] = "auto"


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every picture in the order of the file. Without an `.idx`, damage shows when the reading gets there."""
    file = find_records(path)
    index = file.with_suffix(".idx")
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty; {REMEDY}")
    refuse_stand_in(file)
    pictures = 0
    limit: int | None = None
    with RecordFile(file) as records:
        by_index = options.index == "auto" and index.is_file()
        for number, record in _records(records, index if by_index else None):
            if number == 0 and (limit := header_limit(record)) is not None:
                continue
            is_picture = number < limit if limit is not None else not (record.flag > 0 and record.length == 0)
            if is_picture:
                pictures += 1
                yield _sample(number, record, file, options)
    if limit is not None and by_index and pictures < limit - 1:
        raise DataError(
            f"{index} lists {pictures:,} pictures where the header of {file} says {limit - 1:,}; {INDEX_REMEDY}, or "
            f"write the pictures you want into a .rec of their own"
        )
    if limit is not None and pictures != limit - 1:
        raise DataError(f"{file} holds {pictures:,} pictures where its header says {limit - 1:,}; {REMEDY}")
    if pictures == 0:
        raise DataError(f"{file} holds no picture; {REMEDY}")


def read(sample: Sample, options: Options) -> bytes:
    """Returns the picture's bytes as they were packed."""
    with RecordFile(sample.path) as records:
        if sample.key == PARTS:
            return records.picture(records.record(int(sample.id), sample.offset))
        if sample.length > LARGEST_FILE:
            raise TooLargeError(
                f"record {sample.id} of {sample.path} is no picture: {sample.length:,} bytes, at most {LARGEST_FILE:,} "
                f"are read; remove it"
            )
        picture = records.read(sample.offset, sample.length)
    if len(picture) < sample.length:
        raise DataError(f"{sample.path} ends within record {sample.id}; {REMEDY}")
    return picture


def find_records(path: Path) -> Path:
    """Returns the `.rec` that `path` is, or the only one in the folder `path`."""
    return find_only_file(path, ".rec")


def header_limit(record: Record) -> int | None:
    """Returns the number behind the last picture's where record 0 is an InsightFace header, else None."""
    if record.flag != 2 or record.length > 0:
        return None
    limit, end = record.labels
    return int(limit) if limit.is_integer() and end.is_integer() and 1 <= limit <= end else None


def _sample(number: int, record: Record, file: Path, options: Options) -> Sample:
    offset, length, key = record.offset, record.end - record.offset, PARTS
    if len(record.parts) == 1:
        start, size = record.parts[0]
        offset, length, key = start + size - record.length, record.length, ""
    value = record.labels[0]
    name = None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    label, subject = (name, None) if options.labels == "class" else (None, name)
    return Sample(str(number), None, label, subject, path=file, offset=offset, length=length, key=key)


def _records(records: RecordFile, index: Path | None) -> Iterator[tuple[int, Record]]:
    """Yields record 0 first, whose header says which are pictures; then the others in the order of the file."""
    if index is None:
        number, offset = 0, 0
        while offset < records.size:
            record = records.record(number, offset)
            yield number, record
            number, offset = number + 1, record.end
        return
    keys, offsets = read_index(index, most=records.size // SMALLEST_RECORD + SPARE_LINES)
    if len(keys):
        # A file cut short is refused before any work, not after hours of it.
        last = offsets.argmax()
        end = records.record(int(keys[last]), int(offsets[last])).end
        if end < records.size:
            raise DataError(
                f"{index} ends at byte {end:,} of {records.path}, which has {records.size:,}; the index is cut short, "
                f"filtered or another file's: {INDEX_REMEDY}"
            )
    for place in np.lexsort((offsets, keys != 0)):
        number = int(keys[place])
        yield number, records.record(number, int(offsets[place]))


def read_index(index: Path, *, most: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Reads the keys and the offsets in an `.idx`: two tab-separated whole numbers a line, at most so many lines."""
    if index.stat().st_size == 0:
        raise DataError(f"{index} is empty; {INDEX_REMEDY}")
    refuse_stand_in(index)
    with index.open(encoding="latin-1") as stream:
        lines = islice(read_lines(stream.readline, index), most + 1)
        try:
            table = np.loadtxt(lines, dtype=np.int64, ndmin=2)
            fault = f"{table.shape[1]} columns" if len(table) <= most else f"over {most:,} lines, more than its records"
        except (ValueError, OverflowError) as error:
            table, fault = np.empty((0, 0), np.int64), str(error)
    if table.shape[1] != 2 or len(table) > most or (table < 0).any() or len(np.unique(table[:, 0])) < len(table):
        raise DataError(
            f"{index} is no index of a .rec (expected two whole numbers a line, no key twice; {fault}); {INDEX_REMEDY}"
        )
    return table[:, 0].copy(), table[:, 1].copy()
