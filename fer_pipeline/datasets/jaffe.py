"""Read the pictures of JAFFE, whose names tell person and posed expression: `KA.AN1.39.tiff`.

Source: Lyons et al., Coding Facial Expressions with Gabor Wavelets (FG 1998): 213 pictures of 10 women, seven
expressions, three or four pictures of each. The label is the posed expression; the raters of the set's README disagree
with some. Copies with another suffix (`.tif`, `.png`, `.jpg`, `.tiff.bmp`) are read, too. Files of other names are left
out and counted. There is no split: set `datasets.<set>.split: test` to test all of it, or a protocol.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import PictureRoot, count_left_out, picture_id, read_range, require_samples, say_empty

EXPRESSIONS = {
    **{"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness"},
    **{"NE": "neutral", "SA": "sadness", "SU": "surprise"},
}
NAME = re.compile(r"([A-Z]{2})\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)(\.\w+)*", re.IGNORECASE)


class Options(Settings):
    """Whether links out of the folder are followed."""

    follow_links: bool = False


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every picture in the order of its name."""
    others: Counter[str] = Counter()
    yield from require_samples(
        _samples(path, options, others),
        lambda: f"{say_empty(path, others)}; name the folder of KA.AN1.39.tiff as the data set's path",
    )


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    return count_left_out(partial(_samples, path, options))


read = read_range  # a picture's file as it is


def _samples(path: Path, options: Options, others: Counter[str]) -> Iterator[Sample]:
    root = PictureRoot(path, follow_links=options.follow_links)
    for parts in root.walk(others):
        named = NAME.fullmatch(parts[-1])
        if named is None:
            others["picture of another name"] += 1
            continue
        yield Sample(
            id=picture_id("/".join(parts)),
            split=None,
            label=EXPRESSIONS[named[2].upper()],
            subject=named[1].upper(),
            path=root.folder.joinpath(*parts),
        )
