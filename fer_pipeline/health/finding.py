"""What a check of `doctor` finds, and what it may look at."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fer_pipeline.core.settings import Resources

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what was found, and what to do where it does not stand well."""

    name: str
    level: Level
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Place:
    """The project, its settings and the environment that it is to run in."""

    root: Path
    resources: Resources = field(default_factory=Resources)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
