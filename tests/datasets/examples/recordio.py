"""A small `.rec` with an InsightFace header, a scalar label, an array label, a record of several parts and identities.

`pack` and `frame` write what dmlc-core's and MXNet's specification says; nothing here is shared with the reader.
"""

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

MAGIC = struct.pack("<I", 0xCED7230A)


def pack(payload: bytes, *, label: float | list[float], number: int) -> bytes:
    """A record's data: `IfQQ`, the labels of an array, the payload."""
    labels = label if isinstance(label, list) else []
    scalar = 0.0 if labels else float(label)  # type: ignore[arg-type]
    return struct.pack("<IfQQ", len(labels), scalar, number, 0) + struct.pack(f"<{len(labels)}f", *labels) + payload


def frame(data: bytes) -> bytes:
    """The frames of one record: split where the magic word stands at a multiple of 4."""
    cuts = [place for place in range(0, len(data) // 4 * 4, 4) if data[place : place + 4] == MAGIC]
    starts = [0, *(cut + 4 for cut in cuts)]
    ends = [*cuts, len(data)]
    written = b""
    for part, (start, end) in enumerate(zip(starts, ends, strict=True)):
        flag = 0 if not cuts else 1 if part == 0 else 3 if part == len(cuts) else 2
        written += MAGIC + struct.pack("<I", flag << 29 | (end - start)) + data[start:end]
    return written + b"\0" * (-len(written) % 4)


def write(folder: Path, records: list[bytes], *, keys: list[int] | None = None, index: bool = True) -> Path:
    """`pool.rec` and `pool.idx` of records as `pack` makes them."""
    folder.mkdir(parents=True, exist_ok=True)
    offset, lines, data = 0, [], b""
    for key, record in zip(keys or range(len(records)), records, strict=True):
        framed = frame(record)
        lines.append(f"{key}\t{offset}\n")
        data += framed
        offset += len(framed)
    (folder / "pool.rec").write_bytes(data)
    if index:
        (folder / "pool.idx").write_text("".join(lines))
    return folder / "pool.rec"


def picture(seed: int, *, split_by_magic: bool = False) -> bytes:
    """A PNG; on demand with trailing bytes that hold the magic word three times, twice in a row."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, format="png")
    data = buffer.getvalue()
    return data + b"\0" * (-len(data) % 4) + MAGIC + MAGIC + b"abcd" + MAGIC + b"xy" if split_by_magic else data


def build(folder: Path) -> dict:
    payloads = {1: picture(1), 2: picture(2), 3: picture(3, split_by_magic=True), 4: picture(4)}
    labels: dict[int, float | list[float]] = {1: 7.0, 2: [8.0, 0.5, 0.25], 3: 9.0, 4: [7.0]}

    def records(spoiled: bool) -> list[bytes]:
        shown = {n: b"\1" * len(data) if spoiled and n != 3 else data for n, data in payloads.items()}
        if spoiled:
            # Its parts must stay, since where they end is no picture's business.
            shown[3] = b"\1" * (len(payloads[3]) - 18) + payloads[3][-18:]
        pictures = [pack(shown[n], label=labels[n], number=n) for n in payloads]
        identities = [pack(b"", label=[1.0, 3.0], number=5), pack(b"", label=[3.0, 5.0], number=6)]
        return [pack(b"", label=[5.0, 7.0], number=0), *pictures, *identities]

    path = write(folder, records(spoiled=False))
    expected = {"1": (None, None, "7"), "2": (None, None, "8"), "3": (None, None, "9"), "4": (None, None, "7")}
    return {
        "path": path,
        "options": {},
        "expected": expected,
        "pictures": {str(n): np.asarray(Image.open(io.BytesIO(data))) for n, data in payloads.items()},
        "spoil": lambda: write(folder, records(spoiled=True)),
    }
