"""Pictures as files below one root: names in, samples' ids, splits and bytes out. Nothing outside the root is opened.

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
from fer_pipeline.core.settings import Split

SPLITS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "publictest"), "val"),
    **dict.fromkeys(("test", "testing", "privatetest"), "test"),
}
PICTURE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def picture_id(relative: str) -> str:
    """The id of a file whose path below the root is `relative`."""
    plain = os.fsencode(relative.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return re.sub(r"#(?=\d+$)", r"\\x23", plain)


def split_of(word: str, named: Mapping[str, Split], *, where: str, cure: str) -> Split:
    """The split that a source's word means: the settings' own words first, then the usual ones."""
    plain = word.strip().lower()
    known: dict[str, Split] = {**SPLITS, **{name.strip().lower(): split for name, split in named.items()}}
    if plain not in known:
        raise DataError(f"{where}: {word!r} is no known split (known: {', '.join(sorted(known))}); {cure}")
    return known[plain]


class PictureRoot:
    """A folder that pictures may not leave, neither by `..` nor, unless allowed, by a symbolic link."""

    def __init__(self, folder: Path, *, follow_links: bool) -> None:
        if not folder.is_dir():
            found = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"the folder of pictures {folder} {found}; correct the data set's path in the settings")
        self.folder = Path(os.path.normpath(folder))
        self.follow_links = follow_links
        self._real = os.path.realpath(folder)
        self._checked: set[Path] = set()

    def locate(self, name: str) -> Path:
        """The file that a list calls `name`; DataError where it lies outside the root."""
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
        if not self.follow_links:
            real = os.path.realpath(path)
            if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
                raise DataError(
                    f"{path} is a link out of {self.folder} (to {real}); copy what it points to, or set "
                    f"options.follow_links: true"
                )


def read_picture(sample: Sample) -> bytes:
    """The whole file of a sample; DataError where there is none or it is no plain file (a pipe would wait for ever)."""
    try:
        if not stat.S_ISREG(os.stat(sample.path).st_mode):
            raise DataError(f"{sample.path} is no plain file")
        return sample.path.read_bytes()
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror})") from None
