"""Read the pictures of RaFD, whose names tell all: `Rafd090_28_Caucasian_male_angry_frontal.jpg`.

Source: Langner et al., Presentation and validation of the Radboud Faces Database (2010): 67 models, eight expressions,
three directions of gaze, five cameras, 8,040 pictures. `Rafd090` is the camera in front, and the last word the gaze, so
that `frontal` there does not mean it: papers on expressions use the 1,608 pictures of that camera, which is the
default. A person is model number and group, since other sets of models share the numbers. Other cameras and files of
other names are left out and counted. There is no split: set `datasets.<set>.split: test` to test all of it, or a
protocol.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import PictureRoot, count_left_out, picture_id, read_range, require_samples, say_empty

EXPRESSIONS = {
    **{"angry": "anger", "contemptuous": "contempt", "disgusted": "disgust", "fearful": "fear"},
    **{"happy": "happiness", "neutral": "neutral", "sad": "sadness", "surprised": "surprise"},
}
NAME = re.compile(
    rf"Rafd(000|045|090|135|180)_(\d\d)_(\w+)_(male|female)_({'|'.join(EXPRESSIONS)})_(left|frontal|right)\.\w+",
    re.IGNORECASE,
)


class Options(Settings):
    """Which cameras (090 is in front) and gazes are read, and whether links out of the folder are followed."""

    cameras: Annotated[tuple[Literal["000", "045", "090", "135", "180"], ...], Field(min_length=1)] = ("090",)
    gazes: Annotated[tuple[Literal["left", "frontal", "right"], ...], Field(min_length=1)] = (
        *("left", "frontal", "right"),
    )
    follow_links: bool = False


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every picture of the cameras and gazes in the order of its name."""
    others: Counter[str] = Counter()
    name = "Rafd090_28_Caucasian_male_angry_frontal.jpg"
    yield from require_samples(
        _samples(path, options, others),
        lambda: f"{say_empty(path, others)}; name the folder of {name} as the data set's path",
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
        elif named[1] not in options.cameras:
            others["picture of another camera"] += 1
        elif named[6].lower() not in options.gazes:
            others["picture of another gaze"] += 1
        else:
            yield Sample(
                id=picture_id("/".join(parts)),
                split=None,
                label=EXPRESSIONS[named[5].lower()],
                subject=f"{named[2]}_{named[3].capitalize()}",
                path=root.folder.joinpath(*parts),
            )
