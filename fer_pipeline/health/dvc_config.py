"""A project's folder in, what DVC is set to there out: its cache, its remotes, its link types.

Source: DVC 3's `config.py`: four files, of which a later one outdoes an earlier one; paths are relative to their file.
They are read here, with the parser that DVC takes, because asking DVC costs most of a second each time.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configobj import ConfigObj, ConfigObjError
from platformdirs import site_config_dir, user_config_dir

from fer_pipeline.core.errors import DataError

LINK_TYPES = ("reflink", "copy")  # DVC's, where nothing is set
APP = ("dvc", "iterative")


@dataclass(frozen=True)
class Remote:
    """One remote; `folder` is None where it is not a folder of this machine."""

    name: str
    url: str
    verify: bool = False

    @property
    def folder(self) -> Path | None:
        return None if "://" in self.url else Path(self.url)


@dataclass(frozen=True)
class DvcConfig:
    """DVC's settings as far as fsck and doctor need them; `site_cache` is None where DVC chooses."""

    cache: Path
    remotes: Mapping[str, Remote]
    default: str | None = None
    link_types: tuple[str, ...] | None = None
    site_cache: Path | None = None

    @property
    def remote(self) -> Remote | None:
        """The default remote."""
        return self.remotes.get(self.default) if self.default else None


def read_config(root: Path) -> DvcConfig:
    """DVC's settings in the folder that holds `.dvc`."""
    if not (root / ".dvc").is_dir():
        raise DataError(f"no .dvc folder in {root.resolve()}; run in the project's folder, or make one with: dvc init")
    values: dict[str, Any] = {}
    for file in _files(root):
        values |= _read(file)
    names = [
        key.removeprefix("remote.").removesuffix(".url") for key in values if re.fullmatch(r"remote\..*\.url", key)
    ]
    remotes = {
        name: Remote(name, values[f"remote.{name}.url"], _true(values, f"remote.{name}.verify")) for name in names
    }
    types = values.get("cache.type")
    site = os.environ.get("DVC_SITE_CACHE_DIR") or values.get("core.site_cache_dir")
    return DvcConfig(
        cache=Path(values.get("cache.dir") or root / ".dvc" / "cache"),
        remotes=remotes,
        default=values.get("core.remote", "").lower() or None,
        link_types=tuple(re.findall(r"\w+", str(types))) if types else None,
        site_cache=Path(site) if site else None,
    )


def _files(root: Path) -> Iterator[Path]:
    yield Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir(*APP), "config")
    yield Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir(*APP), "config")
    yield root / ".dvc" / "config"
    yield root / ".dvc" / "config.local"


def _read(file: Path) -> dict[str, Any]:
    """The options of one file, `core.remote` and `remote.<name>.url`, with paths resolved."""
    if not file.is_file():
        return {}
    try:
        content = ConfigObj(str(file), encoding="utf-8").dict()
    except (ConfigObjError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} is no valid DVC configuration ({error}); mend it, or set it anew: dvc config"
        ) from None
    values: dict[str, Any] = {}
    for title, section in content.items():
        named = re.fullmatch(r'\s*remote\s*"(.*)"\s*', title, re.IGNORECASE)
        prefix = f"remote.{named[1]}" if named else title
        for key, value in section.items() if isinstance(section, dict) else ():
            values[f"{prefix}.{key}".lower()] = _resolved(file, value) if key in ("url", "dir") else value
    return values


def _resolved(file: Path, value: str) -> str:
    if value.startswith("local://"):
        return value.removeprefix("local://")
    if re.match(r"\w+://", value):
        return value
    return os.path.normpath(file.parent.absolute() / Path(value).expanduser())


def _true(values: Mapping[str, Any], key: str) -> bool:
    return str(values.get(key, "")).lower() in ("true", "yes", "on", "1")


def ask(root: Path, *words: str, accepted: tuple[int, ...] = (0,), stdin: str = "") -> str:
    """What DVC says to a question that changes nothing."""
    command = [sys.executable, "-m", "dvc", *words]
    told = subprocess.run(command, cwd=root, input=stdin, capture_output=True, text=True)
    if told.returncode not in accepted:
        reason = (told.stderr.strip() or told.stdout.strip()).splitlines()
        raise DataError(f"`dvc {' '.join(words)}` failed: {reason[-1] if reason else told.returncode}; mend it first")
    return told.stdout
