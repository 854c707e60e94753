"""Read what DVC records of the stages that it ran, in `dvc.lock`: commands, settings, inputs and outputs; ask git."""

import os
import subprocess
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter

from fer_pipeline.core.documents import read_yaml
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import describe_error


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


def _require_short(path: str) -> str:
    """Refuses a path that no file system can hold, of which looking it up would make an error."""
    if max(len(os.fsencode(part)) for part in path.split("/")) > 255 or len(os.fsencode(path)) > 4000:
        raise ValueError("a path is too long")
    return path


class LockedFile(_Entry):
    """One input or output; a folder's `md5` ends with `.dir`."""

    path: Annotated[str, AfterValidator(_require_short)]
    hash: str | None = None
    md5: str | None = None
    size: int | None = None


class LockedStage(_Entry):
    """One stage, as it ran last."""

    cmd: str | list[str] | None = None
    deps: list[LockedFile] | None = None
    outs: list[LockedFile] | None = None
    params: dict[str, dict[str, Any] | None] | None = None


STAGES = TypeAdapter(dict[str, LockedStage])


def read_stages(lock: Path) -> dict[str, dict[str, Any]]:
    """Returns the stages by their names, in the order of the file; none where there is no file."""
    if not lock.exists():
        return {}
    stages = read_mapping(lock).get("stages") or {}
    try:
        STAGES.validate_python(stages)
    except ValueError as error:
        raise broken(lock, error) from None
    return stages


def read_mapping(file: Path) -> dict[Any, Any]:
    """Reads one of DVC's files, which git holds too; one that is damaged is a DataError."""
    try:
        content = read_yaml(file)
        if not isinstance(content, dict | None):
            raise ValueError(f"it holds a {type(content).__name__}, not a mapping")
    except (OSError, ValueError) as error:
        raise broken(file, error) from None
    return content or {}


def broken(file: Path, reason: object) -> DataError:
    """Returns the one line about a damaged file of DVC's."""
    return DataError(f"{file} is broken: {describe_error(reason)}; restore it from git: git checkout -- {file.name}")


def run_git(root: Path, *arguments: str, stdin: str = "") -> str | None:
    """Returns what git prints; None where it fails or is not installed."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], input=stdin, capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout if result.returncode == 0 else None
