"""Describe one sample of a raw data set: where its picture's bytes are and what the source says about it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture of a raw data set, without the picture itself.

    `id` is unique within the set and stable over runs; `label` is the source's own word for it, None where there is
    none. `(path, offset, length)` is the range of bytes that the picture depends on, the whole file where length is -1;
    `key` is the adapter's own way to find it there.
    """

    id: str
    split: str | None
    label: str | None
    subject: str | None
    path: Path
    offset: int = 0
    length: int = -1
    key: str = ""
