"""A project's folder in, every output that `dvc.lock` and the `*.dvc` files promise out, with its hash."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fer_pipeline.core.errors import DataError

FOLDER = ".dir"  # ends the hash of an output that is a folder


@dataclass(frozen=True)
class Output:
    """One output; `path` is relative to the project's folder, `stage` an address that `dvc repro` knows."""

    path: str
    stage: str
    md5: str  # with `.dir` for a folder
    size: int = 0
    cached: bool = True
    imported: bool = False  # by `dvc import`, which knows where it came from

    @property
    def is_folder(self) -> bool:
        return self.md5.endswith(FOLDER)

    @property
    def is_added(self) -> bool:
        """Whether a person put it there, so that no stage can make it anew."""
        return self.stage.endswith(".dvc")


@dataclass(frozen=True)
class Promised:
    """All outputs, and how many cannot be checked: outside of the project, or hashed as DVC 2 did."""

    outputs: tuple[Output, ...]
    unchecked: int = 0


def promised(root: Path) -> Promised:
    """Reads every `dvc.lock` and `*.dvc` file; a DataError names one that cannot be read."""
    outputs: list[Output] = []
    unchecked = 0
    for file in _files(root):
        for output in _of_lock(root, file) if file.name == "dvc.lock" else _of_added(root, file):
            if output is None:
                unchecked += 1
            else:
                outputs.append(output)
    return Promised(tuple(outputs), unchecked)


def _files(root: Path) -> Iterator[Path]:
    outs: set[Path] = set()  # nothing in an output promises anything
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        if "dvc.lock" in files:
            outs |= {here / path for path in _paths(here / "dvc.lock")}
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and here / name not in outs and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name == "dvc.lock" or Path(name).suffix == ".dvc")


def _paths(lock: Path) -> Iterator[str]:
    with _read(lock):
        for stage in (_mapping(lock).get("stages") or {}).values():
            yield from (out["path"] for out in stage.get("outs") or ())


def _of_lock(root: Path, lock: Path) -> Iterator[Output | None]:
    content, here = _mapping(lock), lock.parent
    definition = here / "dvc.yaml"
    stages = (_mapping(definition).get("stages") or {}) if definition.exists() else {}
    prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/dvc.yaml:"
    with _read(lock):
        for name, stage in (content.get("stages") or {}).items():
            defined = stages.get(name.partition("@")[0]) or {}
            defined = defined.get("do", defined)
            for out in stage.get("outs") or ():
                wdir = str(defined.get("wdir", "."))
                cached = not any(pattern.fullmatch(str(out["path"])) for pattern in uncached(defined))
                yield _output(root, here / wdir, out, f"{prefix}{name}", cached=cached)


def _of_added(root: Path, file: Path) -> Iterator[Output | None]:
    content = _mapping(file)
    with _read(file):
        for out in content.get("outs") or ():
            where = file.parent / str(content.get("wdir", "."))
            found = _output(root, where, out, file.relative_to(root).as_posix(), cached=bool(out.get("cache", True)))
            yield replace(found, imported=bool(content.get("deps"))) if found else None


def _output(root: Path, where: Path, out: Mapping[str, Any], stage: str, *, cached: bool) -> Output | None:
    place = Path(os.path.normpath(where / str(out["path"])))
    inside = "://" not in str(out["path"]) and "${" not in str(where) and place.is_relative_to(root)
    if not inside or out.get("hash") != "md5" or "md5" not in out:
        return None
    return Output(place.relative_to(root).as_posix(), stage, str(out["md5"]), int(out.get("size", 0)), cached)


def uncached(stage: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """Patterns of the outputs that a stage of `dvc.yaml` keeps out of the cache (`cache: false`)."""
    found: list[re.Pattern[str]] = []
    for section in ("outs", "metrics", "plots"):
        for out in stage.get(section) or ():
            for path, flags in out.items() if isinstance(out, dict) else ():
                if isinstance(flags, dict) and flags.get("cache") is False:
                    words = re.split(r"\$\{[^}]*\}", path)
                    found.append(re.compile(".+".join(map(re.escape, words))))
    return found


@contextmanager
def _read(file: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(_broken(file, f"{type(error).__name__} {error}")) from None


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(_broken(file, " ".join(str(error).split()))) from None
    if not isinstance(content, dict | None):
        raise DataError(_broken(file, f"it holds a {type(content).__name__}, not a mapping"))
    return content or {}


def _broken(file: Path, why: str) -> str:
    return f"{file} is broken: {why}; take it from git again: git checkout -- {file.name}"
