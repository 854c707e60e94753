"""Read the sequences of Oulu-CASIA: of each the last frames, whose expression is its folder's name.

Source: Zhao et al., Facial expression recognition from near-infrared videos (2011): 80 persons, six expressions, two
cameras (`VL`, `NI`), three kinds of light, in `OriginalImg/VL/Strong/P001/Anger/000.jpeg`. With the defaults that is
the set of Ding et al. (FG 2017): the last three frames under strong visible light, 1,440 pictures of six classes.
`neutral: true` takes the first frame of every sequence, too. `part: middle` is the frames in between, without a label,
for a pool; its section repeats the options and the protocol of the labelled set, so that persons that a fold tests are
in no pool of that fold. Other frames and files of other names are left out and counted. There is no split: set
`datasets.<set>.split: test` to test all of it, or a protocol.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.core.errors import OptionError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import (
    PictureRoot,
    choose_last,
    choose_middle,
    count_left_out,
    picture_id,
    read_range,
    require_samples,
)

ROOTS = (".", "OriginalImg", "B_OriginalImg", "B_OriginalImg/OriginalImg")  # where VL and NI may lie
CROPPED = "{camera}_Acropped/{light}"  # the archive of crops
EXPRESSIONS = {
    **{"anger": "anger", "disgust": "disgust", "fear": "fear", "happiness": "happiness"},
    **{"sadness": "sadness", "surprise": "surprise"},
}
PERSON, FRAME = re.compile(r"P\d{3}"), re.compile(r"(\d{1,6})\.\w+")


class Options(Settings):
    """Which frames are read, and where the persons' folders lie below the path; null: by camera and light."""

    part: Literal["labelled", "middle"] = "labelled"  # middle: a pool of the frames between first and last ones
    last: Annotated[int, Field(ge=1)] = 3
    neutral: bool = False  # the first frame of a sequence
    camera: Literal["VL", "NI"] = "VL"
    light: Literal["Strong", "Weak", "Dark"] = "Strong"
    images: Path | None = None
    follow_links: bool = False  # symbolic links out of the folder, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields the frames sequence by sequence, in the order of their names."""
    yield from require_samples(
        _samples(path, options, Counter()),
        lambda: f"{path} holds no frame P001/Anger/000.jpeg; unpack it again or correct the data set's path",
    )


def divided_as(options: Options) -> Options:
    """Returns the options of the labelled set, whose persons a protocol divides."""
    return options.model_copy(update={"part": "labelled"})


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    return count_left_out(partial(_samples, path, options))


read = read_range  # a frame's file as it is


def _samples(path: Path, options: Options, others: Counter[str]) -> Iterator[Sample]:
    root = PictureRoot(_find_folder(path, options), follow_links=options.follow_links)
    for parts, files in groupby(root.walk(others), key=lambda parts: parts[:-1]):
        names = [file[-1] for file in files]
        person, label = (parts[-2], EXPRESSIONS.get(parts[-1].lower())) if len(parts) >= 2 else ("", None)
        if not PERSON.fullmatch(person) or label is None:
            others["picture outside of P001/Anger"] += len(names)
            continue
        frames = {int(named[1]): name for name in names if (named := FRAME.fullmatch(name))}
        others["picture of another name"] += len(names) - len(frames)
        ordered = [frames[number] for number in sorted(frames)]
        where = root.folder.joinpath(*parts)
        chosen = choose_last(ordered, label, last=options.last, neutral=options.neutral, where=where)
        chosen = choose_middle(ordered, last=options.last) if options.part == "middle" else chosen
        others["frame that no rule takes"] += len(ordered) - len(chosen)
        for name, meaning in chosen:
            place = (*parts, name)
            yield Sample(picture_id("/".join(place)), None, meaning, person, root.folder.joinpath(*place))


def _find_folder(path: Path, options: Options) -> Path:
    """Returns the folder of the persons."""
    usual = [path / root / options.camera / options.light for root in ROOTS]
    usual.append(path / CROPPED.format(camera=options.camera, light=options.light))
    folders = usual if options.images is None else [path / options.images]
    folder = next((one for one in folders if one.is_dir()), None)
    if folder is None:
        wanted = options.images or f"OriginalImg/{options.camera}/{options.light}"
        raise OptionError(f"{path} holds no folder {wanted}", images="FOLDER (of P001, P002, …)")
    return folder
