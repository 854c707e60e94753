"""Find and read the files of a data set, and name the pictures below a root. Nothing outside the root is opened.

An id is the path below the root with `/` between its parts. Bytes of a name that are no UTF-8 are written `\\xNN`, a
backslash twice, and a last `#<number>` with its `#` as `\\x23`, so that ids are text, differ where names differ, and
never meet the `#<number>` that tells several faces of one picture apart.

A folder is walked by one rule for every reader. A file is a picture if its suffix says so, in capitals too, or its
first bytes: a suffix is a habit. Links are followed, and one that leads nowhere is passed on, so that its reader counts
it. What is left out is counted by its kind: other files by suffix, hidden and system files (`._x.jpg`, `Thumbs.db`),
links to a folder above, folders that may not be opened.

A name in a list that is not there as it stands is the file that differs in the form of its accents (macOS decomposes
them, Unicode TR 15), in capitals, or in that one of the two has no suffix; two such files are an error.
"""

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import ModuleType
from typing import Any, Literal

from fer_pipeline.core.errors import DataError, OptionError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), "val"),
    **dict.fromkeys(("test", "testing", "privatetest"), "test"),
}
PICTURE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
MAGIC = re.compile(  # how files begin of the formats that alignment/pictures.py reads
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|.{4}ftypavi[fs]|"
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51|P[1-6]\s+[#\d]",
    re.DOTALL,
)
LARGEST_FILE = 80_000_000  # bytes of a picture; what is larger is no picture of faces, and is not read into memory
SYSTEM_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def picture_id(relative: str) -> str:
    """Returns the id of a file whose path below the root is `relative`."""
    plain = os.fsencode(relative.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return re.sub(r"#(?=\d+$)", r"\\x23", plain)


def kind_of(entry: os.DirEntry[str]) -> Literal["folder", "file", "pipe", "nothing"]:
    """Tells what an entry is or links to; `pipe` stands for devices too, `nothing` for a link that leads nowhere."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself
        return "nothing"
    return "pipe" if os.path.exists(entry.path) else "nothing"


def visible_entries(folder: Path, left_out: Counter[str] | None = None) -> list[os.DirEntry[str]]:
    """Returns what a folder holds in the order of the names' bytes; hidden and system files are left out and counted.

    A folder that may not be opened counts as one, and gives nothing.
    """
    visible: list[os.DirEntry[str]] = []
    left_out = Counter() if left_out is None else left_out
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                first = entry.name[0]
                hidden = first == "." or (first == "@" and kind_of(entry) == "folder")  # @eaDir, not @someone.jpg
                if hidden or entry.name.lower() in SYSTEM_NAMES:
                    folder_or_not = " folder" if kind_of(entry) == "folder" else ""
                    left_out[("hidden" if hidden else "system") + folder_or_not] += 1
                else:
                    visible.append(entry)
    except PermissionError:
        left_out["folder that may not be opened"] += 1
    return sorted(visible, key=lambda entry: os.fsencode(entry.name))


def _is_picture(file: os.DirEntry[str]) -> bool:
    if _suffix(file.name):
        return True
    try:
        with open(file.path, "rb") as stream:
            return MAGIC.match(stream.read(16)) is not None
    except OSError:  # so that the reader counts it
        return True


def format_left_out(left_out: Counter[str]) -> str:
    """Says what was left out, most frequent first, or nothing where nothing was."""
    kinds = [f"{count:,} {kind}" for kind, count in sorted(left_out.items(), key=lambda pair: (-pair[1], pair[0]))]
    more = f" and {len(kinds) - 10:,} more kinds" if len(kinds) > 10 else ""
    files = "file" if left_out.total() == 1 else "files"
    return f"{left_out.total():,} {files} left out: {', '.join(kinds[:10])}{more}" if kinds else ""


def say_empty(folder: Path, left_out: Counter[str]) -> str:
    """Says that a folder holds no picture, and what else it holds."""
    return f"{folder} holds no picture ({format_left_out(left_out)})" if left_out else f"{folder} holds no file"


def require_samples(samples: Iterable[Sample], fault: Callable[[], str]) -> Iterator[Sample]:
    """Yields samples; where there is none, a DataError that says what `fault` then returns."""
    is_empty = True
    for sample in samples:
        is_empty = False
        yield sample
    if is_empty:
        raise DataError(fault())


def report_left_out(adapter: ModuleType, path: Path, options: Any) -> tuple[str, ...]:
    """Says what an adapter that walks a folder leaves out there; other adapters read lists."""
    line = format_left_out(adapter.left_out(path, options)) if hasattr(adapter, "left_out") else ""
    return (line,) if line else ()


def count_left_out(walk: Callable[[Counter[str]], Iterable[Any]]) -> Counter[str]:
    """Counts by kind what a walk leaves out, which it adds to the counter that it is given."""
    counts: Counter[str] = Counter()
    deque(walk(counts), maxlen=0)
    return +counts  # without kinds of which there are none


def choose_last(frames: Sequence[str], label: str, *, last: int, neutral: bool, where: Path) -> list[tuple[str, str]]:
    """Returns the last frames of a sequence with its label, before them the first as neutral where that is wanted.

    A sequence without a frame before the last ones is a DataError that says `where`.
    """
    if len(frames) <= last:
        raise DataError(f"{where} holds {len(frames)} frames, at least {last + 1} are expected; unpack it again")
    return [*([(frames[0], "neutral")] if neutral else []), *((name, label) for name in frames[-last:])]


def choose_middle(frames: Sequence[str], *, last: int) -> list[tuple[str, None]]:
    """Returns the frames between the first and the last ones, none of which `choose_last` takes, without a label."""
    return [(name, None) for name in frames[1:-last]]


def parse_split(word: str, own: Mapping[str, Split] | None, *, where: str) -> Split:
    """Returns the split that a source's word means: the settings' own words first, then the usual ones.

    `own` is None where the source's form is fixed, so that another word is a fault of the file.
    """
    known: dict[str, Split] = {**SPLITS, **{name.strip().lower(): split for name, split in (own or {}).items()}}
    try:
        return known[word.strip().lower()]
    except KeyError:
        fault = f"{where}: {word[:50]!r} is no known split (known: {', '.join(sorted(known))})"
        if own is None:
            raise DataError(f"{fault}; fetch the file again") from None
        raise OptionError(fault, splits=f"{{{word[:50]}: train}} (or val, or test)") from None


def find_only_file(path: Path, suffix: str, **remedies: str) -> Path:
    """Returns `path` if it is a file, or the only file with a suffix in that folder; else an error with `remedies`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; correct the data set's path")
    files = sorted(path.glob(f"*{suffix}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "none"
        fault = f"{path} must hold one {suffix} file, found {names}"
        raise OptionError(fault, **remedies) if remedies else DataError(f"{fault}; name the file itself as the path")
    return files[0]


def is_absolute(name: str) -> bool:
    """Tells whether a list names a picture by its place on some machine, of Unix or Windows."""
    return PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).anchor)


class PictureRoot:
    """A folder that pictures may not leave, neither by `..` nor, unless allowed, by a symbolic link."""

    def __init__(self, folder: Path, *, follow_links: bool, refuse_pipes: bool = True) -> None:
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"the folder of pictures {folder} {state}; correct the data set's path")
        self.folder = Path(os.path.normpath(folder))
        self.follow_links = follow_links
        self.refuse_pipes = refuse_pipes  # and devices, which may not be opened: reading never ends
        self._real = Path(os.path.realpath(folder))
        self._checked: set[Path] = set()
        self._names: dict[Path, dict[tuple[bool, str], list[str]]] = {}  # of a folder, by their plain form

    def walk(
        self,
        left_out: Counter[str] | None = None,
        parts: tuple[str, ...] = (),
        *,
        ignored: Path | None = None,
        above: tuple[str, ...] = (),
    ) -> Iterator[tuple[str, ...]]:
        """Yields the parts of the path below the root of every picture, in the order of the names' bytes.

        Args:
            left_out: Counts what is no picture, by kind.
            parts: The folder below the root in which to begin.
            ignored: A file that is neither a picture nor counted.
            above: The real folders above, to notice a link in a circle.
        """
        folder = self.folder.joinpath(*parts)
        above = (*above, os.path.realpath(folder))
        left_out = Counter() if left_out is None else left_out
        for entry in visible_entries(folder, left_out):
            if ignored is not None and os.path.realpath(entry.path) == os.path.realpath(ignored):
                continue
            kind = kind_of(entry)
            if entry.is_symlink():
                self.check_link(Path(entry.path))
            if kind == "pipe" and self.refuse_pipes:
                raise DataError(f"{entry.path} is a pipe, socket or device and no picture; remove it")
            if kind == "folder" and os.path.realpath(entry.path) in above:
                left_out["link to a folder above"] += 1
            elif kind == "folder":
                yield from self.walk(left_out, (*parts, entry.name), ignored=ignored, above=above)
            elif kind != "file" or _is_picture(entry):
                yield (*parts, entry.name)
            else:
                suffix = os.path.splitext(entry.name)[1].lower()
                left_out[re.sub(r"[^\w.-]", "?", suffix) or "without a suffix"] += 1

    def locate(self, name: str, *, where: str) -> Path:
        """Returns the file that a list calls `name`.

        Raises:
            OptionError: It lies outside the root, by its name or a link.
            DataError: It may be two files; every error says `where`.
        """
        file = Path(os.path.normpath(self.folder / name))
        if "\0" in name:  # no file can be called so: it is missing
            return file
        if not file.is_relative_to(self.folder):
            fault = f"{where}: {name!r} lies outside the folder of pictures {self.folder}"
            cut = {"prefixes": "[BEGINNING] (it is cut off)"} if is_absolute(name) else {}
            raise OptionError(fault, images="a folder that holds it", **cut)
        try:
            is_link = stat.S_ISLNK(os.lstat(file).st_mode)
        except OSError:
            file = self.match(name, where=where) or file
            is_link = os.path.islink(file)  # whatever its name, where pathlib raises for one that is too long
        # The folders on the way may be links too, and thousands of pictures share them.
        if file.parent not in self._checked:
            self.check_link(file.parent, where=where)
            self._checked.add(file.parent)
        if is_link:
            self.check_link(file, where=where)
        return file

    def match(self, name: str, *, where: str = "") -> Path | None:
        """Returns the file of another form of the name, or None; DataError where two files are as near to it."""
        file = Path(os.path.normpath(self.folder / name))
        place, parts = self.folder, file.relative_to(self.folder).parts if file.is_relative_to(self.folder) else ()
        for depth, part in enumerate(parts, 1):
            if not os.path.lexists(place / part):
                near = self._match_entry(place, part, is_folder=depth < len(parts), where=where)
                if near is None:
                    return None
                part = near
            place = place / part
        return place if parts else None

    def _match_entry(self, folder: Path, name: str, *, is_folder: bool, where: str) -> str | None:
        near = self._list_near(folder, name, is_folder=is_folder)
        if not is_folder:
            near = [
                entry for entry in near if _suffix(entry) == _suffix(name) or not _suffix(entry) or not _suffix(name)
            ]
        if len(near) == 1 and not is_folder:
            return near[0]
        for form in FORMS[:2] if is_folder else FORMS:  # the nearest first
            same = [entry for entry in near if form(entry) == form(name)]
            if len(same) > 1:
                several = " and ".join(map(repr, same))
                fault = f"{where}{': ' if where else ''}{name!r} is not in {folder}, but {several} are"
                if form is _stem and not _suffix(name):
                    endings = " or ".join(os.path.splitext(entry)[1] for entry in same)
                    raise OptionError(f"{fault}; write which of them is meant", ending=endings)
                raise DataError(f"{fault}; write which of them is meant")
            if same:
                return same[0]
        return None

    def suggest(self, name: str) -> str:
        """Says which file with another suffix is there instead of one that is not, or nothing."""
        file = self.folder / name
        near = self._list_near(file.parent, file.name, is_folder=False)
        return f", but {near[0]} is there" if near else ""

    def _list_near(self, folder: Path, name: str, *, is_folder: bool) -> list[str]:
        """Returns the files or folders that have this name but for form, capitals and suffix."""
        if folder not in self._names:  # listed only where a name is not there as it stands
            names: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
            for entry in visible_entries(folder) if os.path.isdir(folder) else ():
                names[kind_of(entry) == "folder", _plain_stem(entry.name)].append(entry.name)
            self._names[folder] = dict(names)
        return self._names[folder].get((is_folder, _plain_stem(name)), [])

    def check_link(self, path: Path, *, where: str = "") -> None:
        """Refuses a path whose real place is outside the root, unless links may be followed."""
        if not self.follow_links and not (real := Path(os.path.realpath(path))).is_relative_to(self._real):
            fault = f"{where}{': ' if where else ''}{path} is a link out of {self.folder} (to {real})"
            raise OptionError(fault, follow_links="true")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _small(name: str) -> str:
    return _composed(_composed(name).casefold())


def _suffix(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in PICTURE_SUFFIXES else ""


def _stem(name: str) -> str:
    return _composed(name[: len(name) - len(_suffix(name))])


def _plain_stem(name: str) -> str:
    return _small(_stem(name))


FORMS: tuple[Callable[[str], str], ...] = (_composed, _small, _stem, _plain_stem)


class TooLargeError(DataError):
    """A file or a record is too large for a picture."""


def read_range(sample: Sample, options: Settings) -> bytes:
    """Reads the bytes of a sample as they are; DataError where there are none or in a pipe, which waits for ever."""
    return read_picture(sample.path, offset=sample.offset, length=sample.length)


def read_picture(path: Path, *, offset: int = 0, length: int = -1) -> bytes:
    """Reads a picture's file, or a range of it; DataError where there is none, or in a pipe or a device.

    Raises:
        TooLargeError: It has over `LARGEST_FILE` bytes, and is not read.
    """
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path} is no plain file; replace it by a picture")
        size = max(0, state.st_size - offset) if length < 0 else length
        if size > LARGEST_FILE:
            raise TooLargeError(f"{path} is no picture: {size:,} bytes, at most {LARGEST_FILE:,} are read; remove it")
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", error)
        raise DataError(f"{path} cannot be read ({reason}); restore it, or take it out of the data set") from None
