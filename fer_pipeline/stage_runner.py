"""Run one stage from the command line: check all settings, take its lock, record its progress and where it ran.

The record of a run lies outside of every output, so that outputs stay equal for equal inputs.
"""

import importlib.metadata
import inspect
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_pipeline.commands.check import check_for
from fer_pipeline.core.files import write_json
from fer_pipeline.core.settings import STORE, ProjectSettings
from fer_pipeline.core.summary import Summary
from fer_pipeline.sharding.locks import lock_for_run
from fer_pipeline.sharding.progress_file import ProgressFile

SHARDED_STAGES = ("align", "embed")  # they write their progress file themselves, with counts of shards
PACKAGES = ("fer_pipeline", "torch", "torchvision", "numpy", "pyarrow", "pillow")


def run_stage(stage: str, options: Mapping[str, Any], *, params: Path) -> Summary:
    """Calls the `run` of a stage with its checked settings, those of the project, and the options.

    Only one run of a stage and name works on a store at a time; a second one is refused with a DataError. The name is
    made of the options that are plain text: a data set, a pool, a recipe and its target.
    """
    store = options.get("store", STORE)
    checked = check_for(stage, params, remembered=store / "memory" / "checked")
    parameters = inspect.signature(checked.module.run).parameters.values()
    name = "-".join(options[one.name] for one in parameters if one.annotation is str)
    owner = f"{stage}@{name}" if name else stage
    progress_file = nullcontext() if stage in SHARDED_STAGES else ProgressFile(store, stage, name).follow()
    with lock_for_run(store, owner), recorded(store / "provenance" / f"{owner}.json", stage=stage), progress_file:
        return checked.module.run(checked.config, limit_workers(checked.project), **options)


def limit_workers(project: ProjectSettings) -> ProjectSettings:
    """The same settings with at most three workers for two of the cores that this process may use.

    Three equal pieces of work on two cores end after three halves of a piece's time where all run at once, after two
    whole ones where two do. Whoever runs several stages at once gives each its share of the cores. Where workers divide
    the data of a training, their number is part of the result, and stays.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    resources = project.resources
    if resources.parallel == "data" or resources.workers <= (most := cores + cores // 2):
        return project
    return project.model_copy(update={"resources": resources.model_copy(update={"workers": most})})


@contextmanager
def recorded(path: Path, *, stage: str) -> Iterator[None]:
    """Writes `path` when the stage has ended well: commit, host, versions, start and seconds."""
    started, clock = datetime.now(UTC), time.monotonic()
    yield
    record = {
        "stage": stage,
        "arguments": sys.argv[1:],
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 3),
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }
    write_json(path, record)


def _commit() -> str | None:
    """The checked-out commit, with a mark where tracked files differ from it; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
