"""Read sequences of MMI: of each session with a basic emotion the frames around its apex, and the first as neutral.

Source: Pantic et al., Web-based Database for Facial Expression Analysis (ICME 2005), as its site gives it out:
`Sessions/<n>/` with `session.xml`, `S001-001.avi`, `S001-001.xml` and, for some, `S001-001-oao_aucs.xml`. The emotion
is the `Metatag` of that name, 1 to 6; other values are other states. Videos are not decoded here: extract the frames
beside them, for example `ffmpeg -i S001-001.avi S001-001/%05d.png`; those of a session are all pictures in its folder,
in the order of the last number in their names. Portrait clips want a quarter turn clockwise (`-vf transpose=1`), but
for those with an `oao` file: look at a frame of each, since a face on its side is not found. Expressions rise, reach
their peak in the middle and fall (Liu et al., arXiv:2005.08551, section 4, who have 213 sequences): `apex: middle`
takes the frames in the middle of a sequence, `apex: marked` those in the middle of what all action units of the `oao`
file have as their apex, and leaves out sessions without one. A unit may be active several times, in markers one after
the other or in an `ActionUnit` of the same number each: the longest stretch counts in which all are at an apex. How
many frames the papers take is not stated by that one; three are the default, as for CK+.

What the marks mean (types 2 and 3: apex and offset begin) and the track's `view` (0: front, 1: profile, 2: both beside
each other) is inferred from readers of others; of two faces in a frame `align` takes one, by its own rule. Left out and
counted: sessions of profiles alone, with another state or without one, without extracted frames, and stills. There is
no split: set `datasets.<set>.split: test` to test all of it, or a protocol.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Literal
from xml.parsers import expat

from pydantic import Field

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings
from fer_pipeline.datasets._files import (
    PictureRoot,
    count_left_out,
    kind_of,
    picture_id,
    read_picture,
    read_range,
    require_samples,
    visible_entries,
)

EMOTIONS = dict(enumerate(("anger", "disgust", "fear", "happiness", "sadness", "surprise"), 1))
SESSION, NUMBER = re.compile(r"S\d{3}-\d{3}\.xml"), re.compile(r"\d{1,9}")
LARGEST_XML, MOST_ELEMENTS = 1_000_000, 20_000  # bytes, tags
PROFILE = "1"  # of a track's view
APEX, OFFSET = "2", "3"  # types of a marker: where these begin
Elements = Sequence[tuple[str, Mapping[str, str]]]


class Options(Settings):
    """How many frames are read around which apex, and whether the first one of a sequence is read as neutral."""

    frames: Annotated[int, Field(ge=1)] = 3
    apex: Literal["middle", "marked"] = "middle"
    neutral: bool = False
    follow_links: bool = False  # symbolic links out of the folder, as DVC's link caches make them


def samples(path: Path, options: Options) -> Iterator[Sample]:
    """Yields the frames session by session."""
    yield from require_samples(
        _samples(path, options, Counter()),
        lambda: f"{path} holds no session with an emotion and frames; extract them: ffmpeg -i X.avi X/%05d.png",
    )


def left_out(path: Path, options: Options) -> Counter[str]:
    """Counts by kind what `samples` leaves out; sessions without a picture too."""
    return count_left_out(partial(_samples, path, options))


read = read_range  # a frame's file as it is


def _samples(path: Path, options: Options, others: Counter[str]) -> Iterator[Sample]:
    root = PictureRoot(path / "Sessions" if (path / "Sessions").is_dir() else path, follow_links=options.follow_links)
    seen: set[str] = set()
    for session, files in groupby(root.walk(others), key=lambda parts: parts[0]):
        seen.add(session)
        pictures = list(files)
        if len(pictures[0]) == 1:
            others["picture outside of a session"] += 1
            continue
        numbers = [NUMBER.findall(Path(parts[-1]).stem)[-1:] for parts in pictures]
        numbered = {int(number[0]): parts for number, parts in zip(numbers, pictures, strict=True) if number}
        frames = [numbered[number] for number in sorted(numbered)]
        others["picture without a number of its own"] += len(pictures) - len(frames)
        found = _describe(root, root.folder / session)
        if isinstance(found, str):
            others[f"frame of {found}"] += len(frames)
            continue
        person, label, marks = found
        if len(frames) <= options.frames:
            others["still picture"] += len(frames)
            continue
        centre = (len(frames) - 1) / 2
        if options.apex == "marked":
            marked = _find_apex(root, marks, len(frames)) if marks else "a session without a marked apex"
            if isinstance(marked, str):
                others[f"frame of {marked}"] += len(frames)
                continue
            centre = marked
        first = min(
            max(int(options.neutral), math.floor(centre - (options.frames - 1) / 2)), len(frames) - options.frames
        )
        chosen = [(parts, label) for parts in frames[first : first + options.frames]]
        if options.neutral:
            chosen = [(frames[0], "neutral"), *chosen]
        others["frame that no rule takes"] += len(frames) - len(chosen)
        for parts, meaning in chosen:
            yield Sample(picture_id("/".join(parts)), None, meaning, person, root.folder.joinpath(*parts))
    sessions = {entry.name for entry in visible_entries(root.folder) if kind_of(entry) == "folder"}
    others["session whose frames are not extracted"] += len(sessions - seen)


def _describe(root: PictureRoot, folder: Path) -> tuple[str, str, Path | None] | str:
    """Returns person, expression and the file of marks of a session, or what it is that is left out."""
    names = [entry.name for entry in visible_entries(folder)]
    tables = [name for name in names if SESSION.fullmatch(name)]
    if not tables or "session.xml" not in names:
        return "a session without its XML files"
    if len(tables) > 1:
        raise OptionError(f"{folder} describes several sequences, {tables[0]} and {tables[1]}; give each its folder")
    tracks = [dict(has) for tag, has in _read_xml(root, folder / "session.xml") if tag.lower() == "track"]
    views = {has["view"] for has in tracks if "view" in has}
    if views == {PROFILE}:
        return "a session in profile"
    tags = [has for tag, has in _read_xml(root, folder / tables[0]) if tag.lower() == "metatag"]
    values = {has.get("Value", "") for has in tags if has.get("Name") == "Emotion"}
    if not values:
        return "a session without an emotion"
    if len(values) > 1:
        raise DataError(f"{folder / tables[0]} names several emotions, {', '.join(sorted(values))}; fetch it again")
    value = values.pop().strip()
    label = EMOTIONS.get(int(value)) if value.isascii() and value.isdigit() and len(value) < 4 else None
    if label is None:
        return "a session of another state"
    marks = folder / tables[0].replace(".xml", "-oao_aucs.xml")
    return tables[0][:4], label, marks if marks.is_file() else None


def _find_apex(root: PictureRoot, file: Path, frames: int) -> float | str:
    """Returns the middle, from 0, of the frames in which all marked units are at their apex, or why there is none.

    Of several such stretches it is that of the longest, of equal ones of the first. Where no frame is that of all units
    and each was active once, it is the middle between the last beginning and the first end.
    """
    units: dict[str, list[tuple[int, str]]] = {}
    unit = ""
    for tag, has in _read_xml(root, file):
        if tag.lower() == "actionunit":
            unit = has.get("Number", "")
        elif tag.lower() == "marker" and has.get("Type") in (APEX, OFFSET) and NUMBER.fullmatch(has.get("Frame", "")):
            units.setdefault(unit, []).append((int(has["Frame"]), has["Type"]))
    marks = [mark for own in units.values() for mark in own]
    begins, ends = ([frame for frame, kind in marks if kind == wanted] for wanted in (APEX, OFFSET))
    if not (begins and ends):
        return "a session without a marked apex"
    if max(begins + ends) > frames + 1:
        raise DataError(f"{file} marks no apex within the {frames} frames of its session; extract all frames again")
    spans = [_pair(own, frames) for own in units.values()]
    common = set.intersection(*({*chain.from_iterable(own)} for own in spans))
    stretches = [[*run] for _, run in groupby(enumerate(sorted(common)), lambda pair: pair[1] - pair[0])]
    if stretches:
        longest = max(stretches, key=len)
        return (longest[0][1] + longest[-1][1]) / 2 - 1
    if all(len(own) == 1 for own in spans):
        return (max(begins) + min(ends) - 1) / 2 - 1
    return "a session whose units are active several times and never all at their apex"


def _pair(marks: Sequence[tuple[int, str]], frames: int) -> list[range]:
    """Returns the frames of each apex of a unit, which the next offset ends: the clip may begin or end within one."""
    marks = sorted(marks, key=lambda mark: mark[0])
    spans, begin = list[range](), None if marks[0][1] == APEX else 1
    for frame, kind in marks:
        if kind == APEX and begin is None:
            begin = frame
        elif kind == OFFSET and begin is not None:
            spans.append(range(begin, frame))
            begin = None
    return spans if begin is None else [*spans, range(begin, frames + 1)]


def _read_xml(root: PictureRoot, file: Path) -> Elements:
    """Returns tag and attributes of every element, in order; DataError for what is no XML, too large or defines names.

    A document type may define entities that stand for gigabytes or for other files, so that none is read.
    """
    root.check_link(file)
    elements: list[tuple[str, dict[str, str]]] = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        elements.append((tag, attributes))
        if len(elements) > MOST_ELEMENTS:
            raise ValueError(f"it has over {MOST_ELEMENTS:,} elements")

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which is not read")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        if (size := file.stat().st_size) > LARGEST_XML:
            raise ValueError(f"it has {size:,} bytes, and at most {LARGEST_XML:,} are read")
        parser.Parse(read_picture(file), True)
    except (expat.ExpatError, ValueError, LookupError, OSError) as error:
        raise DataError(f"{file} is no session of MMI ({error}); fetch it again") from None
    return elements
