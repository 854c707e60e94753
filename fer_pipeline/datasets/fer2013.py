"""Read the published CSV of FER2013, one sample a row; a row's 48 by 48 grey values are given back as a PNG.

Source: Goodfellow et al., arXiv:1307.0414, as Kaggle publishes it: `fer2013.csv` (emotion, pixels, Usage) or
`icml_face_data.csv` (the same columns in another order, names with blanks); its `train.csv` and `test.csv`, which lack
columns, are read too. The file is read as a stream and a sample keeps the range of bytes of its pixels, so that reading
is random access. `Training` is train, `PublicTest` val and `PrivateTest` test, as the challenge used them. A sample is
named `fer0000000` by its row, as FER+ names the same pictures.
"""

import io
from collections.abc import Iterator
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


class Options(Settings):
    """`file` where `path` is a folder; the side of a picture in pixels."""

    file: str | None = None
    size: int = 48


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields one sample per row, in the order of the file."""
    names = FILE_NAMES if options.file is None else (options.file,)
    file = next((file for file in (path, *(path / name for name in names)) if file.is_file()), None)
    if file is None:
        raise OptionError(f"{path} is no file and holds no {' or '.join(names)}", file="FILE")
    refuse_stand_in(file)
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
