"""Where and when a stage ran: a JSON note outside of every output, so that outputs stay equal for equal inputs."""

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fer_pipeline.core.files import write_json

PACKAGES = ("fer_pipeline", "torch", "torchvision", "numpy", "pyarrow", "pillow")


@contextmanager
def noted(path: Path, *, stage: str) -> Iterator[None]:
    """Writes `path` when the stage has ended well: commit, host, versions, start and seconds."""
    started, clock = datetime.now(UTC), time.monotonic()
    yield
    note = {
        "stage": stage,
        "arguments": sys.argv[1:],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }
    write_json(path, note)


def commit() -> str | None:
    """The checked-out commit, with a mark where tracked files differ from it; None outside of git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
