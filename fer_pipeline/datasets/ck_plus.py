"""Read the sequences of CK+: of each labelled one the last frames with its label, and the first as neutral.

Source: Lucey et al., The Extended Cohn-Kanade Dataset (CVPR workshops 2010), unpacked: pictures
`<images>/S005/001/S005_001_00000011.png`, labels `<emotions>/S005/001/S005_001_00000011_emotion.txt`, a code from 1 to
7 written as a float. 327 of 593 sequences have a label, and those of contempt are 18. With the defaults that is the set
of Ding et al. (FG 2017) and Liu et al. (arXiv:2005.08551): the last three frames and the first, 1,308 pictures of eight
classes; `contempt: false` leaves its sequences out whole, 1,236 pictures of seven classes; `neutral: false` as well,
927 of six; `last: 1` is the set of Happy et al. (2019), 618.

`part: middle` is the frames in between, without a label, for a pool: Happy et al. take them so. Its section repeats
the options and the protocol of the labelled set, so that persons that a fold tests are in no pool of that fold.

Other frames, sequences without a label and files of other names are left out and counted. There is no split: set
`datasets.<set>.split: test` to test all of it, or a protocol, which keeps a person's sequences together.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import (
    PictureRoot,
    choose_last,
    choose_middle,
    count_left_out,
    kind_of,
    picture_id,
    read_picture,
    read_range,
    require_samples,
    visible_entries,
)

EMOTIONS = ("neutral", "anger", "contempt", "disgust", "fear", "happiness", "sadness", "surprise")
IMAGES = ("cohn-kanade-images", "extended-cohn-kanade-images/cohn-kanade-images", "extended-cohn-kanade-images")
LABELS = ("Emotion", "Emotion_labels/Emotion", "Emotion_labels")
FRAME = re.compile(r"(S\d{3})_(\d{3})_(\d{8})\.\w+")
LONGEST_LABEL = 100  # bytes of a file with one number in it


class Options(Settings):
    """Which frames are read, and where pictures and labels lie below the path; null: where the archives put them."""

    part: Literal["labelled", "middle"] = "labelled"  # middle: a pool of the frames between first and last ones
    last: Annotated[int, Field(ge=1)] = 3
    neutral: bool = True  # the first frame of a sequence
    contempt: bool = True
    images: Path | None = None
    emotions: Path | None = None
    follow_links: bool = False  # symbolic links out of the folders, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields the frames sequence by sequence, in the order of their names."""
    yield from require_samples(
        _samples(path, options, Counter()),
        lambda: f"{path} holds no labelled sequence; unpack its pictures and Emotion_labels.zip there",
    )


def divided_as(options: Options) -> Options:
    """Returns the options of the labelled set, whose persons a protocol divides."""
    return options.model_copy(update={"part": "labelled"})


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    return count_left_out(partial(_samples, path, options))


read = read_range  # a frame's file as it is


def _samples(path: Path, options: Options, others: Counter[str]) -> Iterator[Sample]:
    root = PictureRoot(_folder(path, options.images, IMAGES, "images"), follow_links=options.follow_links)
    labels = PictureRoot(_folder(path, options.emotions, LABELS, "emotions"), follow_links=options.follow_links)
    for parts, files in groupby(root.walk(others), key=lambda parts: parts[:-1]):
        frames: dict[str, str] = {}  # by number, which has as many digits everywhere
        for *_, name in files:
            if (named := FRAME.fullmatch(name)) and parts[-2:] == (named[1], named[2]):
                others["second picture of a frame"] += named[3] in frames
                frames.setdefault(named[3], name)
            else:
                others["picture of another name"] += 1
        label = _read_label(labels, parts) if frames else None
        if label is None or (label == "contempt" and not options.contempt):
            kind = "frame of a sequence without a label" if label is None else "frame of contempt"
            others[kind] += len(frames)
            continue
        names = [frames[number] for number in sorted(frames)]
        where = root.folder.joinpath(*parts)
        chosen = choose_last(names, label, last=options.last, neutral=options.neutral, where=where)
        chosen = choose_middle(names, last=options.last) if options.part == "middle" else chosen
        others["frame that no rule takes"] += len(names) - len(chosen)
        for name, meaning in chosen:
            place = (*parts, name)
            yield Sample(picture_id("/".join(place)), None, meaning, parts[-2], root.folder.joinpath(*place))


def _folder(path: Path, own: Path | None, usual: tuple[str, ...], option: str) -> Path:
    folder = path / own if own is not None else next((path / name for name in usual if (path / name).is_dir()), None)
    if folder is None or not folder.is_dir():
        raise OptionError(f"{path} holds no folder {own or ' or '.join(usual)}", **{option: "FOLDER"})
    return folder


def _read_label(labels: PictureRoot, parts: tuple[str, ...]) -> str | None:
    """Returns the expression of a sequence; None where its folder is not there or holds no label."""
    folder = labels.folder.joinpath(*parts[-2:])
    if not folder.is_dir():
        return None
    entries = visible_entries(folder)
    files = [entry for entry in entries if entry.name.endswith("_emotion.txt") and kind_of(entry) == "file"]
    if not files:
        return None
    if len(files) > 1:
        raise DataError(f"{folder} holds {len(files)} labels, {files[0].name} and others; unpack Emotion_labels again")
    file = Path(files[0].path)
    labels.check_link(file)
    text = b"" if files[0].stat().st_size > LONGEST_LABEL else read_picture(file)
    try:
        return EMOTIONS[_code(float(text))]
    except ValueError:
        fault = f"{file} holds {text[:30]!r}, expected a code from 1 to 7 as 3.0000000e+00"
        raise DataError(f"{fault}; unpack Emotion_labels again") from None


def _code(number: float) -> int:
    if number not in range(1, len(EMOTIONS)):
        raise ValueError
    return int(number)
