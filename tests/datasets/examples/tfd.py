"""Five pictures of 4 by 4 as MATLAB writes them, one without a label; labels compressed, pictures plain doubles."""

import struct
import zlib
from pathlib import Path

import numpy as np

LABELS, PERSONS = [1, -1, 4, 7, 6], [3, -1, 12, -1, 3]
FOLDS = [[1, 1, 1, 2, 3], [0] * 5, [2, 1, 3, 1, 1], [3, 3, 1, 1, 2], [1, 2, 2, 3, 1]]
KINDS = {np.dtype("u1"): (2, 9), np.dtype("i1"): (1, 8), np.dtype("i2"): (3, 10), np.dtype("f8"): (9, 6)}  # MATLAB's


def element(kind: int, data: bytes) -> bytes:
    """One of at most 4 bytes stands in its tag, as MATLAB writes it."""
    if 0 < len(data) <= 4:
        return struct.pack("<HH4s", kind, len(data), data)
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(name: str, values: np.ndarray) -> bytes:
    kind, number = KINDS[values.dtype]
    parts = element(6, struct.pack("<II", number, 0)), element(5, np.asarray(values.shape, "<i4").tobytes())
    inside = b"".join((*parts, element(1, name.encode()), element(kind, values.tobytes(order="F"))))
    return struct.pack("<II", 14, len(inside)) + inside


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed


def write(file: Path, *elements: bytes) -> None:
    header = b"MATLAB 5.0 MAT-file, a small example".ljust(116) + b"\0" * 8 + struct.pack("<H", 0x0100) + b"IM"
    file.write_bytes(header + b"".join(elements))


def arrays() -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(11).integers(0, 256, (5, 4, 4)).astype("f8")
    labels = {"labs_ex": np.asarray(LABELS, "i1")[:, None], "labs_id": np.asarray(PERSONS, "i2")[:, None]}
    return {"images": pixels, **labels, "folds": np.asarray(FOLDS, "u1")}


def build(folder: Path) -> dict:
    folder.mkdir()
    file, found = folder / "TFD_48x48.mat", arrays()
    elements = [matrix("images", found["images"]), *(compressed(matrix(*pair)) for pair in list(found.items())[1:])]
    write(file, *elements)
    (folder / "TFD_info.mat").write_bytes(file.read_bytes()[:128])
    expected = {
        "tfd000000": ("train", "anger", "3"),
        "tfd000002": ("val", "happiness", "12"),
        "tfd000003": ("test", "neutral", None),
        "tfd000004": ("train", "surprise", "3"),
    }
    rows = {name: int(name[3:]) for name in expected}
    pictures = {name: np.repeat(found["images"][row].astype(np.uint8)[..., None], 3, 2) for name, row in rows.items()}

    def spoil() -> None:
        write(file, matrix("images", np.full((5, 4, 4), np.nan)), *elements[1:])

    return {"path": folder, "options": {}, "expected": expected, "pictures": pictures, "spoil": spoil}
