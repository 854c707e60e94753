"""Find and read the files of a data set, and name the pictures below a root. Nothing outside the root is opened.

An id is the path below the root with `/` between its parts. Bytes of a name that are no UTF-8 are written `\\xNN`, a
backslash twice, and a last `#<number>` with its `#` as `\\x23`, so that ids are text, differ where names differ, and
never meet the `#<number>` that tells several faces of one picture apart.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.samples import Sample
from fer_pipeline.core.settings import Settings, Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), "val"),
    **dict.fromkeys(("test", "testing", "privatetest"), "test"),
}
PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def picture_id(relative: str) -> str:
    """Returns the id of a file whose path below the root is `relative`."""
    plain = os.fsencode(relative.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return re.sub(r"#(?=\d+$)", r"\\x23", plain)


def parse_split(word: str, own: Mapping[str, Split], *, where: str, remedy: str) -> Split:
    """Returns the split that a source's word means: the settings' own words first, then the usual ones."""
    known: dict[str, Split] = {**SPLITS, **{name.strip().lower(): split for name, split in own.items()}}
    try:
        return known[word.strip().lower()]
    except KeyError:
        raise DataError(f"{where}: {word!r} is no known split (known: {', '.join(sorted(known))}); {remedy}") from None


def find_only_file(path: Path, suffix: str, *, remedy: str) -> Path:
    """Returns `path` if it is a file, or the only file with a suffix in the folder `path`."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist; correct the data set's path in the settings")
    files = sorted(path.glob(f"*{suffix}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:5]) or "none"
        raise DataError(f"{path} must hold one {suffix} file, found {names}; {remedy}")
    return files[0]


class PictureRoot:
    """A folder that pictures may not leave, neither by `..` nor, unless allowed, by a symbolic link."""

    def __init__(self, folder: Path, *, follow_links: bool) -> None:
        if not folder.is_dir():
            state = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"the folder of pictures {folder} {state}; correct the data set's path in the settings")
        self.folder = Path(os.path.normpath(folder))
        self.follow_links = follow_links
        self._real = Path(os.path.realpath(folder))
        self._checked: set[Path] = set()

    def locate(self, name: str) -> Path:
        """Returns the file that a list calls `name`; DataError where it lies outside the root."""
        file = Path(os.path.normpath(self.folder / name))
        if not file.is_relative_to(self.folder):
            raise DataError(f"{name!r} lies outside the folder of pictures {self.folder}; name a root that holds it")
        # The folders on the way may be links too, and thousands of pictures share them.
        if file.parent not in self._checked:
            self.check_link(file.parent)
            self._checked.add(file.parent)
        if file.is_symlink():
            self.check_link(file)
        return file

    def check_link(self, path: Path) -> None:
        """Refuses a path whose real place is outside the root, unless links may be followed."""
        if not self.follow_links and not (real := Path(os.path.realpath(path))).is_relative_to(self._real):
            raise DataError(
                f"{path} is a link out of {self.folder} (to {real}); copy what it points to, or set "
                f"options.follow_links: true"
            )


def read_range(sample: Sample, options: Settings) -> bytes:
    """Reads the bytes of a sample as they are; DataError where there are none or in a pipe, which waits for ever."""
    try:
        if not stat.S_ISREG(os.stat(sample.path).st_mode):
            raise DataError(f"{sample.path} is no plain file; replace it by a picture")
        with sample.path.open("rb") as stream:
            stream.seek(sample.offset)
            return stream.read(sample.length)
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror})") from None
