"""An MXNet/InsightFace `.rec` (and its `.idx`, where there is one) in, one sample per picture out, without mxnet.

Source: the layout that InsightFace's training code reads: record 0 is a header (flag 2, label = [a, b], no picture),
records 1 to a - 1 are pictures labelled with their identity (a number, or an array whose first value counts), records
a to b - 1 are the identities' ranges. Those without a picture are told by the header's range, and by an empty payload
behind a label array where the file has no header. With an `.idx` a record's name is its key there; without one the file
is read from its start and the name is the record's number: InsightFace's keys are these numbers. Memory is 72 bytes a
record with an `.idx` and constant without. Difference: the number of pictures is compared with the header's, so that a
file cut short between two records is noticed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._records import CURE, Record, RecordFile, whole_number

PARTS = "parts"


class Options(Settings):
    """What the numbers in the records mean, and whether the `.idx` beside the `.rec` is used."""

    labels: Literal["subject", "class"] = "subject"
    index: Literal["auto", "none"] = "auto"


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Every picture in the order of the file. Without an `.idx`, damage shows when the reading gets there."""
    file = find_records(path)
    index = file.with_suffix(".idx")
    found = 0
    with RecordFile(file) as records:
        if options.index == "auto" and index.is_file():
            numbered = _by_index(index, records)
        else:
            numbered = _by_stream(records)
        limit: int | None = None
        for number, record in numbered:
            if number == 0 and (limit := header_limit(record)) is not None:
                continue
            is_picture = number < limit if limit is not None else not (record.flag > 0 and record.payload_length == 0)
            if is_picture:
                found += 1
                yield _sample(number, record, file, options)
    if limit is not None and found != limit - 1:
        raise DataError(f"{file} holds {found:,} pictures where its header says {limit - 1:,}; {CURE}")
    if found == 0:
        raise DataError(f"{file} holds no picture; {CURE}")


def read(sample: Sample, options: Options) -> bytes:
    """The picture's bytes as they were packed."""
    with RecordFile(sample.path) as records:
        if sample.key == PARTS:
            return records.join(int(sample.id), sample.offset)
        picture = records.read(sample.offset, sample.length)
    if len(picture) < sample.length:
        raise DataError(f"{sample.path} ends within record {sample.id}; {CURE}")
    return picture


def find_records(path: Path) -> Path:
    """The `.rec` that `path` is, or the only one in the folder `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; correct the data set's path in the settings")
    found = sorted(path.glob("*.rec"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise DataError(f"{path} must hold one .rec file, found {names}; name the file itself as the data set's path")
    return found[0]


def header_limit(record: Record) -> int | None:
    """The number behind the last picture's, where record 0 is an InsightFace header."""
    if record.flag != 2 or record.payload_length > 0:
        return None
    limit, end = record.labels
    return int(limit) if limit.is_integer() and end.is_integer() and 1 <= limit <= end else None


def _sample(number: int, record: Record, file: Path, options: Options) -> Sample:
    if record.payload is None:
        offset, length, key = record.offset, record.end - record.offset, PARTS
    else:
        (offset, length), key = record.payload, ""
    name = whole_number(record.labels[0])
    return Sample(
        id=str(number),
        split=None,
        label=name if options.labels == "class" else None,
        subject=name if options.labels == "subject" else None,
        path=file,
        offset=offset,
        length=length,
        key=key,
    )


def _by_stream(records: RecordFile) -> Iterator[tuple[int, Record]]:
    number, offset = 0, 0
    while offset < records.size:
        record = records.record(number, offset)
        yield number, record
        number, offset = number + 1, record.end


def _by_index(index: Path, records: RecordFile) -> Iterator[tuple[int, Record]]:
    """Record 0 first, whose header says which are pictures; then in the order of the file, for the disk's sake."""
    keys, offsets = read_index(index)
    order = np.argsort(offsets, kind="stable")
    if len(order):
        # A file cut short is refused before any work, not after hours of it.
        last = records.record(int(keys[order[-1]]), int(offsets[order[-1]]))
        if last.end < records.size:
            raise DataError(
                f"{index} ends at byte {last.end:,} of {records.path}, which has {records.size:,}; the index is cut "
                f"short or another file's: fetch it again, or remove it to read the .rec from its start"
            )
    for place in np.flatnonzero(keys == 0):
        yield 0, records.record(0, int(offsets[place]))
    for place in order:
        number = int(keys[place])
        if number != 0:
            yield number, records.record(number, int(offsets[place]))


def read_index(index: Path) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """The keys and the offsets in an `.idx`: two tab-separated whole numbers a line."""
    if index.stat().st_size == 0:
        raise DataError(f"{index} is empty; fetch it again, or remove it to read the .rec from its start")
    try:
        table = np.loadtxt(index, dtype=np.int64, ndmin=2)
    except ValueError as error:
        table, fault = None, str(error)
    else:
        fault = f"{table.shape[1]} columns"
    if table is None or table.shape[1] != 2 or (table < 0).any() or len(np.unique(table[:, 0])) < len(table):
        raise DataError(
            f"{index} is no index of a .rec (expected two whole numbers a line, no key twice; {fault}); fetch it "
            f"again, or remove it to read the .rec from its start"
        )
    return table[:, 0].copy(), table[:, 1].copy()
