"""Pictures with identities in, an InsightFace `.rec` and its `.idx` out, as MXNet and dmlc-core specify them."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from fer_pipeline.core.files import replacing

MAGIC = struct.pack("<I", 0xCED7230A)


def write_records(
    file: Path, pictures: Iterable[tuple[int, bytes | memoryview]], *, first_of_identity: Sequence[int], total: int
) -> None:
    """Writes `file` and the `.idx` beside it. `pictures` are (identity, bytes), all of one identity together.

    Records 1 to `total` are the pictures; `first_of_identity` are the numbers of the identities' first pictures.
    """
    ends = [*first_of_identity[1:], total + 1]
    with replacing(file) as data, replacing(file.with_suffix(".idx")) as index:
        with data.open("wb") as stream, index.open("w", encoding="ascii") as lines:

            def put(number: int, record: bytes) -> None:
                lines.write(f"{number}\t{stream.tell()}\n")
                stream.write(framed(record))

            put(0, packed(b"", labels=(total + 1, total + 1 + len(ends)), number=0))
            for number, (identity, picture) in enumerate(pictures, start=1):
                put(number, packed(picture, label=identity, number=number))
            for number, span in enumerate(zip(first_of_identity, ends, strict=True), start=total + 1):
                put(number, packed(b"", labels=span, number=number))


def packed(payload: bytes | memoryview, *, number: int, label: float = 0.0, labels: Sequence[float] = ()) -> bytes:
    """The data of a record: `IfQQ` (number of labels, label, id, id2), the labels of an array, the payload."""
    head = struct.pack("<IfQQ", len(labels), label, number, 0) + struct.pack(f"<{len(labels)}f", *labels)
    return head + bytes(payload)


def framed(data: bytes) -> bytes:
    """The frames of one record: split, without it, where the magic word stands at a multiple of 4."""
    cuts: list[int] = []
    place = data.find(MAGIC)
    while place >= 0:
        if place % 4 == 0:
            cuts.append(place)
        place = data.find(MAGIC, place + 1)
    starts, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(data)]
    written = []
    for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
        flag = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
        written += [MAGIC, struct.pack("<I", flag << 29 | (end - start)), data[start:end], b"\0" * (-(end - start) % 4)]
    return b"".join(written)
