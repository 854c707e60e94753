"""Format numbers, names and pictures as the page shows them.

Shares become percent with one decimal, differences points with a sign; pictures become data URIs, so that the page is
one file.
"""

import base64
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fer_pipeline.artifacts.faces import encode
from fer_pipeline.evaluation.statistics import Interval

NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
LARGEST = 112  # pixels of a crop's side on the page
MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"<?xml": "image/svg+xml"}


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as percent, without the sign %."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def points(share: float | None, digits: int = 1) -> str:
    """A difference of shares as percentage points, always with its sign."""
    if share is None or not math.isfinite(share):
        return NONE
    rounded = f"{abs(100 * share):.{digits}f}"
    sign = "" if float(rounded) == 0 else "+" if share > 0 else MINUS
    return sign + rounded


def plus_minus(interval: Interval) -> str:
    """`71.3 ± 1.2`, or the mean alone where there is no interval."""
    half = interval.half_width
    return percent(interval.mean) if half is None else f"{percent(interval.mean)} ± {percent(half)}"


def span(interval: Interval, *, signed: bool = False) -> str:
    """`0.4 to 3.8`, the ends of an interval."""
    form = points if signed else percent
    return NONE if interval.low is None or interval.high is None else f"{form(interval.low)} to {form(interval.high)}"


def span_of(ordered: Sequence[str]) -> str:
    """`0.4 to 3.8`, the first and the last of some figures; one alone where they are equal."""
    if not ordered:
        return NONE
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NONE if value is None else f"{round(value):,}"


def megabytes(number: int | None) -> str:
    """Bytes as whole megabytes of 10^6."""
    return NONE if number is None else count(number / 1e6)


def plural(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listing(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def visible(text: str) -> str:
    """A name from outside with its control and direction characters made visible; the template escapes the rest."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def data_uri(picture: bytes) -> str:
    """A PNG, JPEG or SVG as the text of a `src` attribute; its first bytes, and no file name, say which it is."""
    media_type = next(kind for magic, kind in MEDIA_TYPES.items() if picture.startswith(magic))
    return f"data:{media_type};base64,{base64.b64encode(picture).decode('ascii')}"


def crop_uri(crop: UInt8[np.ndarray, "h w 3"]) -> str:
    """A crop as the data URI of a JPEG, shrunk where it is larger than the page shows it."""
    if max(crop.shape[:2]) > LARGEST:
        crop = np.asarray(Image.fromarray(crop).resize((LARGEST, LARGEST), Image.Resampling.LANCZOS))
    return data_uri(encode(crop, format="jpeg", quality=88))
