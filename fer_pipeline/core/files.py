"""Write files and folders atomically (beside, fsync, rename), and read files with errors of one line."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, AnyStr

from pydantic import BaseModel, ValidationError

from fer_pipeline.core import documents
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.settings import describe

LARGEST_PNG = 16_000_000  # bytes of a picture on a page
LONGEST_LINE = 1_000_000  # characters of a table's line, or of a row over several
RERUN = "run the stage that writes it (dvc repro)"


def fsync_path(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place, or is removed on an error.

    What was at `path` stays until the new file or folder is complete. A link there is a DataError.
    """
    refuse_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, retired = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{kind}") for kind in ("tmp", "old"))
    try:
        yield temporary
        for inside in (*sorted(temporary.rglob("*")), temporary):
            fsync_path(inside)
        if temporary.is_dir() and path.exists():  # a folder cannot be renamed onto one that holds files
            path.replace(retired)
        temporary.replace(path)
        remove(retired)
        fsync_path(path.parent)
    finally:
        remove(temporary)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder that takes the place of `path`, as with `replacing`."""
    with replacing(path) as temporary:
        temporary.mkdir()
        yield temporary


def refuse_link(path: Path) -> None:
    """Refuses to write where a link stands: the result would take its place, and not lie where it leads."""
    if path.is_symlink():
        raise DataError(f"{path} is a link to {os.readlink(path)}; write to that place by its name, or remove the link")


def remove(path: Path) -> None:
    """Removes a file, a folder or a link, where there is one."""
    is_folder = path.is_dir() and not path.is_symlink()
    shutil.rmtree(path, ignore_errors=True) if is_folder else path.unlink(missing_ok=True)


@contextmanager
def refuse_damage(
    path: Path, fault: str, remedy: str, *, missing: str = "", kind: type[Exception] = OSError
) -> Iterator[None]:
    """Turns what goes wrong in the block, which reads a file, into a DataError of one line.

    Args:
        path: The file.
        fault: What is said of a damaged one, for example `is not valid JSON`.
        remedy: What to do about it.
        missing: What to do where there is no such file, if that is said apart.
        kind: The error of the library that reads it, if that has one of its own.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, kind) as error:
        if missing and isinstance(error, FileNotFoundError):
            raise DataError(f"{path} does not exist; {missing}") from None
        raise DataError(f"{path} {fault} ({describe_error(error)}); {remedy}") from None


def describe_error(error: object) -> str:
    """Returns what a library says of damage, in at most 200 characters."""
    if isinstance(error, ValidationError):
        return describe(error, BaseModel)
    return documents.one_line(repr(error) if isinstance(error, KeyError) else error, 200)


def refuse_stand_in(path: Path) -> None:
    """Refuses (DataError) what a failed download or checkout leaves: a web page, or a pointer of git-LFS."""
    with path.open("rb") as stream:
        start = stream.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs."):
        raise DataError(f"{path} is a pointer of git-LFS, not the file itself; run `git lfs pull` where it comes from")
    # An error of a storage service is XML; a page may begin with that too.
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise DataError(
            f"{path} is a web page, not the file itself (a download that wanted a login, a click or a cookie); "
            f"fetch the file again, for example with a browser"
        )


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a whole text file in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whose bytes depend on the value alone: keys sorted, no NaN, a newline at the end."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; a missing or damaged file is a DataError."""
    with refuse_damage(path, "is not valid JSON", "remove it and run the stage that writes it", missing=RERUN):
        return documents.read_json(path)


def read_lines(readline: Callable[[int], AnyStr], file: Path) -> Iterator[AnyStr]:
    """Yields the lines of a table by its stream's `readline`; DataError at one of over `LONGEST_LINE` characters."""
    number = 1
    while line := readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{file}, line {number}, is over {LONGEST_LINE:,} characters long; expected a table; correct the line "
                f"or name another file"
            )
        yield line
        number += 1


def read_png(path: Path) -> bytes:
    """Reads a PNG that a page is to show; ValueError where it is none, or too large for a page."""
    if (size := path.stat().st_size) > LARGEST_PNG:
        raise ValueError(f"{path.name} has {size:,} bytes, at most {LARGEST_PNG:,} are shown")
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{path.name} is no PNG")
    return data


def fresh_folder(path: Path) -> Path:
    """Makes an empty folder at `path` and returns it; what was there is removed, a link is refused."""
    refuse_link(path)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
