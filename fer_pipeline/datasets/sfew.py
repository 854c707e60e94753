"""Read the aligned faces of SFEW 2.0: `Train/…/Angry/Airheads_000519240_00000005.png`.

Source: Dhall et al., Static Facial Expressions in Tough Conditions (ICCV workshops 2011), as EmotiW 2015 gave it out:
the archives `Train_Aligned_Faces`, `Val_Aligned_Faces_new` and `Test_Aligned_Faces`, of which the papers count 958, 436
and 372 pictures and the aligned packs hold 891 and 431. The labels of the test part were never published, so papers
(Ding et al., FG 2017) measure on the validation part, which is the split `test` here, unless `validation: val`; the
test part is left out and counted. Persons are not named; a film is taken for one, which keeps those of a film on one
side where a protocol divides the set (`subject: none` names nobody).
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import PictureRoot, count_left_out, picture_id, read_range, require_samples, say_empty

EXPRESSIONS = {
    **{"angry": "anger", "disgust": "disgust", "fear": "fear", "happy": "happiness"},
    **{"neutral": "neutral", "sad": "sadness", "surprise": "surprise"},
}
PART = re.compile(r"(train|val|test)(_aligned_faces(_new)?)?", re.IGNORECASE)
FRAME = re.compile(r"(.+?)_\d+_\d+\.\w+")


class Options(Settings):
    """Which split the validation part is, and whether the film stands for the person."""

    validation: Literal["test", "val"] = "test"
    subject: Literal["film", "none"] = "film"
    follow_links: bool = False  # symbolic links out of the folder, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields every labelled face in the order of its name."""
    others: Counter[str] = Counter()
    yield from require_samples(
        _samples(path, options, others),
        lambda: f"{say_empty(path, others)} in Train/Angry and the like; unpack the aligned faces there",
    )


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out."""
    return count_left_out(partial(_samples, path, options))


read = read_range  # a picture's file as it is


def _samples(path: Path, options: Options, others: Counter[str]) -> Iterator[Sample]:
    root = PictureRoot(path, follow_links=options.follow_links)
    for parts in root.walk(others):
        split = next((named[1].lower() for part in parts[:-1] if (named := PART.fullmatch(part))), None)
        named = FRAME.fullmatch(parts[-1])
        label = EXPRESSIONS.get(parts[-2].lower()) if len(parts) > 1 else None
        if split == "test":
            others["picture of the test part, which has no labels"] += 1
        elif split is None or label is None:
            others["picture outside of Train/Angry and the like"] += 1
        else:
            yield Sample(
                id=picture_id("/".join(parts)),
                split=options.validation if split == "val" else "train",
                label=label,
                subject=picture_id(named[1]) if named and options.subject == "film" else None,
                path=root.folder.joinpath(*parts),
            )
