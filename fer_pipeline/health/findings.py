"""Define what a check of `doctor` is given and what it returns."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from fer_pipeline.core.settings import Resources


@dataclass(frozen=True)
class CheckContext:
    """The project, its settings and the environment that it is to run in."""

    root: Path
    resources: Resources = field(default_factory=Resources)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Finding(NamedTuple):
    """What a check found, and what to do where that is not as it should be."""

    level: Literal["ok", "warning", "problem"]
    message: str
    advice: str = ""


def grade(message: str, advice: str, *, problem: bool = False, warning: bool = False) -> Finding:
    """Returns a problem or a warning with advice, else `ok` without."""
    if problem or warning:
        return Finding("problem" if problem else "warning", message, advice)
    return Finding("ok", message)
