"""Read the Toronto Face Database: a MATLAB file with grey pictures, expressions, persons and five published folds.

Source: Susskind et al., The Toronto Face Database (2010), as `TFD_48x48.mat` or `TFD_96x96.mat`: `images` [N, side,
side], `labs_ex` (1 to 7: anger, disgust, fear, happiness, sadness, surprise, neutral; -1 without a label), `labs_id`
(-1 unknown) and `folds` [N, 5] (1 train, 2 validation, 3 test, 0 unlabelled). Of 102,236 pictures 4,178 have a label.
Papers train on each fold's train part and report the mean over the five test parts: `protocol: {name: published, folds:
5, fold: 1}`. `part: unlabelled` reads the others, as a pool. TFD holds pictures of CK+, JAFFE, MMI and more: no test
set of theirs is unseen by what learns from it.

The file is read here and not by a library, of which the usual one ends the process on a damaged file. Format: MATLAB's
"MAT-File Format", level 5, plain or compressed. Nothing of a stated size is allocated before the bytes are there, and
of the pictures only the wanted ones are kept, one byte a pixel. Files of version 7.3 are HDF5: save them by `save -v7`.
"""

import io
import math
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image
from pydantic import Field

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import refuse_stand_in
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import find_only_file

EXPRESSIONS = dict(enumerate(("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"), 1))
PARTS = {1: "train", 2: "val", 3: "test"}
NAMES = ("images", "labs_ex", "labs_id", "folds")
ARRAY, COMPRESSED = 14, 15  # types of elements
KINDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # of numbers
CHUNK = 1 << 16
MOST_PICTURES, LARGEST_SIDE = 1_000_000, 512
LARGEST_KEPT = 1_500_000_000  # bytes of pictures
FOLDS = 5  # the published ones


class Options(Settings):
    """Which of the five folds gives the splits, and whether the labelled pictures are read or the others."""

    file: str | None = None  # where `path` is a folder; null: its only TFD_*x*.mat
    fold: Annotated[int, Field(ge=1, le=FOLDS)] = 1
    part: Literal["labelled", "unlabelled"] = "labelled"


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields the labelled pictures, or all others with the split `train`, in the order of the file."""
    file = _find(path, options)
    labels, persons, folds = _read_labels(file)
    number = 0
    for row in np.flatnonzero(_wanted(labels, options)).tolist():
        part = PARTS.get(int(folds[row, options.fold - 1])) if options.part == "labelled" else "train"
        if part is None:
            continue
        number += 1
        person = int(persons[row])
        label = EXPRESSIONS.get(int(labels[row]))
        yield Sample(f"tfd{row:06d}", part, label, str(person) if person >= 0 else None, file, key=str(row))
    if not number:
        raise DataError(f"{file} holds no {options.part} picture; fetch it again or correct the data set's path")


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    labels, _, folds = _read_labels(_find(path, options))
    wanted = _wanted(labels, options)
    astray = wanted & ~np.isin(folds[:, options.fold - 1], [*PARTS]) & (options.part == "labelled")
    kind = "picture without a label" if options.part == "labelled" else "picture with a label"
    return +Counter({kind: int((~wanted).sum()), f"picture in no part of fold {options.fold}": int(astray.sum())})


def read(sample: Sample, options: Options) -> bytes:
    """Returns a picture as a grey PNG; DataError where its pixels are no numbers from 0 to 255."""
    try:
        modified = os.stat(sample.path).st_mtime_ns
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror}); restore it") from None
    rows, pictures, spoiled = _pictures(sample.path, modified, options.part)
    place = int(np.searchsorted(rows, int(sample.key)))
    if place >= len(rows) or rows[place] != int(sample.key) or spoiled[place]:
        raise DataError(f"{sample.id} of {sample.path.name} has pixels that are not 0 to 255; fetch the file again")
    encoded = io.BytesIO()
    Image.fromarray(pictures[place]).save(encoded, format="png")
    return encoded.getvalue()


def _find(path: Path, options: Options) -> Path:
    if options.file is not None and path.is_dir():
        path = path / options.file
        if not path.is_file():
            raise DataError(f"{path} does not exist; correct the data set's options.file")
    elif path.is_dir() and len(sized := sorted(path.glob("TFD_*x*.mat"))) == 1:
        path = sized[0]
    file = find_only_file(path, ".mat", file="TFD_48x48.mat")
    refuse_stand_in(file)
    return file


def _wanted(labels: Int[np.ndarray, " n"], options: Options) -> Bool[np.ndarray, " n"]:
    return (labels >= 1) == (options.part == "labelled")


def _read_labels(file: Path) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, "n 5"]]:
    return _labels_of(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _labels_of(file: Path, modified: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    pictures = 0
    with file.open("rb") as stream:
        for array in _arrays(stream, file):
            if array.name == NAMES[0]:
                pictures = array.shape[0]
            else:
                found[array.name] = array.integers()
    if missing := [*NAMES[:1][: not pictures], *(name for name in NAMES[1:] if name not in found)]:
        raise DataError(f"{file} has no array {' or '.join(missing)}; name the file TFD_48x48.mat or TFD_96x96.mat")
    labels, persons, folds = (found[name] for name in NAMES[1:])
    if not (labels.size == persons.size == pictures == len(folds) and folds.size == 5 * len(folds)):
        raise DataError(f"the arrays in {file} are not of equally many pictures, or not of five folds; fetch it again")
    labels = labels.ravel()
    if unknown := sorted({*np.unique(labels[labels >= 1]).tolist()} - EXPRESSIONS.keys()):
        raise DataError(f"{file} has the expression {unknown[0]}, expected 1 to 7 or -1; fetch it again")
    return labels, persons.ravel(), folds.reshape(len(folds), 5)


@lru_cache(maxsize=1)
def _pictures(file: Path, modified: int, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the wanted rows, their pictures [m, side, side] and which of them are spoiled."""
    rows = np.flatnonzero(_wanted(_labels_of(file, modified)[0], Options.model_validate({"part": part})))
    with file.open("rb") as stream:
        for array in _arrays(stream, file):
            if array.name == NAMES[0]:
                return rows, *array.pick_pictures(rows)
    raise DataError(f"{file} has no array images; fetch it again")


class _Inflated:
    """Reads what a compressed element of `size` bytes holds, no more of it at a time than is asked for."""

    def __init__(self, stream: io.BufferedIOBase, size: int, file: Path) -> None:
        self._stream, self._left, self._file = stream, size, file
        self._inflate, self._waiting = zlib.decompressobj(), b""

    def read(self, size: int) -> bytes:
        parts = []
        while size and not self._inflate.eof:
            if not self._waiting:
                self._waiting = self._stream.read(min(CHUNK, self._left))
                self._left -= len(self._waiting)
            is_over = not self._waiting
            try:
                parts.append(self._inflate.decompress(self._waiting, size))
            except zlib.error:
                raise _damage(self._file) from None
            self._waiting = self._inflate.unconsumed_tail
            size -= len(parts[-1])
            if is_over and not parts[-1]:
                break
        return b"".join(parts)

    def check_end(self) -> None:
        """Refuses what does not end after a few bytes of filling, with the right checksum."""
        if len(self.read(CHUNK)) > 8 or not self._inflate.eof:
            raise _damage(self._file)


_Stream = io.BufferedIOBase | _Inflated


@dataclass
class _Array:
    """A numeric array of the file, whose values are still to be read from `stream`, the first index fastest."""

    name: str
    shape: tuple[int, ...]
    kind: np.dtype
    stream: _Stream
    file: Path

    def integers(self) -> np.ndarray:
        """Returns all values as integers."""
        if math.prod(self.shape) > 5 * MOST_PICTURES:
            raise DataError(f"{self.name} in {self.file} has the shape {self.shape}, too large for TFD; fetch it again")
        values = self._read(math.prod(self.shape)).reshape(self.shape, order="F")
        self._check_end()
        if not (np.isfinite(values) & (np.abs(values) < 2**31) & (values == np.round(values))).all():
            raise DataError(f"{self.name} in {self.file} holds other values than integers; fetch it again")
        return values.astype(np.int64)

    def pick_pictures(self, rows: Int[np.ndarray, " m"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns some of the pictures [m, side, side] of N, and which of them hold other values than 0 to 255."""
        if len(self.shape) != 3 or not self.shape[1] == self.shape[2] <= LARGEST_SIDE or self.shape[0] > MOST_PICTURES:
            raise DataError(f"images in {self.file} have the shape {self.shape}, expected [N, 48, 48]; fetch it again")
        count, side = self.shape[:2]
        if len(rows) * side * side > LARGEST_KEPT:
            raise DataError(f"{len(rows):,} pictures of {side} px in {self.file} take too much memory; take TFD_48x48")
        pictures, spoiled = np.zeros((len(rows), side, side), np.uint8), np.zeros(len(rows), bool)
        for place in range(side * side):
            values = self._read(count)[rows]
            with np.errstate(invalid="ignore"):
                fits = (values >= 0) & (values <= 255)
                pictures[:, place % side, place // side] = np.where(fits, values, 0).round().astype(np.uint8)
            spoiled |= ~fits
        self._check_end()
        return pictures, spoiled

    def _check_end(self) -> None:
        if isinstance(self.stream, _Inflated):
            self.stream.check_end()

    def _read(self, count: int) -> np.ndarray:
        parts, left = [], count * self.kind.itemsize
        while left:
            parts.append(_take(self.stream, min(left, CHUNK), self.file))
            left -= len(parts[-1])
        return np.frombuffer(b"".join(parts), self.kind)


def _arrays(stream: io.BufferedIOBase, file: Path) -> Iterator[_Array]:
    """Yields the numeric arrays of a file of level 5 one by one; the values of one are to be read before the next."""
    header = stream.read(128)
    if header[:10] == b"MATLAB 7.3" or b"\x89HDF\r\n\x1a\n" in header + stream.read(520):
        raise DataError(f"{file} is of version 7.3 (HDF5); save it in MATLAB by: save -v7")
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None:
        raise DataError(f"{file} is no MATLAB file of level 5; name TFD_48x48.mat or TFD_96x96.mat as the path")
    place = 128
    while True:
        stream.seek(place)
        tag = stream.read(8)
        if not tag:
            return
        if len(tag) < 8:
            raise _damage(file)
        kind, size = struct.unpack(f"{order}II", tag)
        place += 8 + size
        inside: _Stream = _Inflated(stream, size, file) if kind == COMPRESSED else stream
        if kind == COMPRESSED:
            kind, _ = struct.unpack(f"{order}II", _take(inside, 8, file))
        if kind == ARRAY and (array := _read_array(inside, order, file)) is not None:
            yield array


def _read_array(stream: _Stream, order: str, file: Path) -> _Array | None:
    """Reads an array up to its values; None for one that is not numeric."""
    flags = _read_element(stream, order, file, most=8)
    lengths = _read_element(stream, order, file, most=64)
    name = _read_element(stream, order, file, most=64).decode("ascii", "replace")
    if name not in NAMES:
        return None
    if (
        len(flags) != 8
        or not 6 <= struct.unpack(f"{order}I", flags[:4])[0] % 256 <= 15
        or not lengths
        or len(lengths) % 4
    ):
        raise DataError(f"{name} in {file} is no array of numbers; fetch it again")
    kind, size, small = _read_tag(stream, order, file)
    shape = tuple(struct.unpack(f"{order}{len(lengths) // 4}i", lengths))
    letters = KINDS.get(kind)
    if letters is None or min(shape) < 1 or math.prod(shape) * int(letters[1]) != size:
        raise _damage(file)
    values: _Stream = io.BytesIO(small) if small is not None else stream
    return _Array(name, shape, np.dtype(order + letters), values, file)


def _read_element(stream: _Stream, order: str, file: Path, *, most: int) -> bytes:
    """Reads a small element whole, with what fills it up to 8 bytes."""
    _, size, small = _read_tag(stream, order, file)
    if small is not None:
        return small
    if size > most:
        raise _damage(file)
    return _take(stream, -(-size // 8) * 8, file)[:size]


def _read_tag(stream: _Stream, order: str, file: Path) -> tuple[int, int, bytes | None]:
    """Returns type and size of an element, and its bytes where they stand in the tag itself."""
    tag = _take(stream, 8, file)
    first, size = struct.unpack(f"{order}II", tag)
    if first >> 16:
        if first >> 16 > 4:
            raise _damage(file)
        return first & 0xFFFF, first >> 16, tag[4 : 4 + (first >> 16)]
    return first, size, None


def _take(stream: _Stream, size: int, file: Path) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _damage(file)
    return data


def _damage(file: Path) -> DataError:
    return DataError(f"{file} is cut short or damaged; fetch it again")
