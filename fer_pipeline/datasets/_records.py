"""Parse records of a RecordIO file: flag, labels and place of the payload, by positional reads of a few bytes.

Source: dmlc-core `src/recordio.cc` (the frame) and MXNet `python/mxnet/recordio.py` (the header inside), as specified
there; no code is taken over. A frame is the magic word, a word with a 3-bit continuation flag and a 29-bit length, then
the data padded to 4 bytes. Where the magic word occurs at a multiple of 4 in the data, the writer leaves it out and
splits the record there: flag 1 begins, 2 goes on, 3 ends, and the reader puts the word back between the parts. The data
begin with `IfQQ`: flag, label, id, id2; a flag above 0 is the number of float32 labels that follow. Difference: lengths
are checked against the end of the file, so that a truncated file is told from its last whole record.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from fer_pipeline.core.errors import DataError

MAGIC = 0xCED7230A
FRAME = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
REMEDY = "fetch or copy the file again and compare its size"


@dataclass(frozen=True, slots=True)
class Record:
    """`labels` are the first two of a label array, or the one label; `payload` is the range after header and labels.

    A record of several parts has no such range (`payload` is None): `join` puts it together.
    """

    offset: int
    end: int
    flag: int
    labels: tuple[float, ...]
    payload: tuple[int, int] | None
    payload_length: int


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
        # One read brings the frame, the header and two labels: all of a single-part record but its picture.
        start = self.read(offset, FRAME.size + HEADER.size + 8)
        continuation, length = self._frame(start, number, offset)
        if continuation == 0:
            data, end = start[FRAME.size : FRAME.size + length], self._end(offset + FRAME.size + length, number, offset)
        elif continuation == 1:
            data, end = self._join(number, offset)
            length = len(data)
        else:
            raise self._damaged(number, offset, "it goes on a record that nothing begins")
        if length < HEADER.size:
            raise self._damaged(number, offset, f"{length} bytes are too few for the image header's {HEADER.size}")
        flag, label, _, _ = HEADER.unpack_from(data)
        head = HEADER.size + 4 * flag
        if head > length:
            raise self._damaged(number, offset, f"{flag} labels do not fit into its {length} bytes")
        labels = struct.unpack_from(f"<{min(flag, 2)}f", data, HEADER.size) if flag else (label,)
        payload = (offset + FRAME.size + head, length - head) if continuation == 0 else None
        return Record(offset, end, flag, labels, payload, length - head)

    def join(self, number: int, offset: int) -> bytes:
        """Puts the payload of a record of several parts together."""
        data, _ = self._join(number, offset)
        return data[len(data) - self.record(number, offset).payload_length :]

    def read(self, offset: int, length: int) -> bytes:
        """Reads a range of bytes, as many as there are."""
        return os.pread(self._descriptor, length, offset)

    def _join(self, number: int, offset: int) -> tuple[bytes, int]:
        parts: list[bytes] = []
        place, continuation = offset, 0
        while continuation != 3:
            continuation, length = self._frame(self.read(place, FRAME.size), number, place)
            if continuation not in ((2, 3) if parts else (1,)):
                raise self._damaged(number, place, "the parts of the record are out of order")
            end = self._end(place + FRAME.size + length, number, offset)
            parts.append(self.read(place + FRAME.size, length))
            place = end
        return struct.pack("<I", MAGIC).join(parts), place

    def _frame(self, start: bytes, number: int, offset: int) -> tuple[int, int]:
        if len(start) < FRAME.size:
            raise self._truncated(number, offset)
        magic, word = FRAME.unpack_from(start)
        if magic != MAGIC:
            raise self._damaged(number, offset, f"the magic word is 0x{magic:08x}, expected 0x{MAGIC:08x}")
        return word >> 29, word & ((1 << 29) - 1)

    def _end(self, end: int, number: int, offset: int) -> int:
        if end > self.size:
            raise self._truncated(number, offset)
        # The last record's padding may be missing without loss.
        return min(end + -(end - offset) % 4, self.size)

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
