"""Write named arrays as safetensors files, and read them as what their reader expects.

A file is as long as its arrays, so that one cannot stand for more memory than it has bytes; its header says their types
and shapes, which are compared before an array is read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fer_pipeline.core.documents import one_line
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import refuse_damage, write_bytes


class Kind(NamedTuple):
    """What a reader expects of an array; a name that several arrays share among their axes is one length."""

    dtype: str  # as safetensors has it
    axes: Sequence[str | int]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> None:
    """Writes named arrays, and words about them, as one file, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, metadata=dict(about) if about else None))


def read_arrays(
    path: Path, expected: Mapping[str, Kind], *, stage: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the expected arrays of a file, and the words about them.

    A file that is missing or damaged, lacks one or has it of another form, or holds a number that is not finite, is a
    DataError that says to run `stage`.
    """
    remedy = f"remove it and run: dvc repro {stage}"
    missing = f"run: dvc repro {stage}"
    with refuse_damage(path, "is damaged", remedy, missing=missing, kind=SafetensorError):
        with safe_open(path, framework="numpy") as stored:
            opened: Any = stored
            lengths: dict[str, int] = {}
            for name, kind in expected.items():
                _check(opened.get_slice(name) if name in opened.keys() else None, name, kind, lengths)
            arrays = {name: opened.get_tensor(name) for name in expected}
            about = dict(opened.metadata() or {})
    if bad := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise DataError(f"{path} holds {bad[0]} that are not finite; {remedy}")
    return arrays, about


def _check(found: Any, name: str, kind: Kind, lengths: dict[str, int]) -> None:
    """Raises a ValueError where the header of an array is not what is expected."""
    if found is None:
        raise ValueError(f"it lacks {name}")
    dtype, shape = found.get_dtype(), tuple(found.get_shape())
    expected = f"{kind.dtype} [{' '.join(map(str, kind.axes))}]"
    fits = dtype == kind.dtype and len(shape) == len(kind.axes)
    for axis, length in zip(kind.axes, shape, strict=False):
        fits = fits and length == (axis if isinstance(axis, int) else lengths.setdefault(axis, length))
    if not fits:
        raise ValueError(f"{name} is {dtype} {one_line(list(shape), 80)}, expected {expected}")
