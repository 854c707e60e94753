"""Run one stage from the command line: check all settings, take its lock, record its progress and where it ran.

The record of a run lies outside of every output, so that outputs stay equal for equal inputs.
"""

import inspect
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.locked_stages import run_git
from fer_pipeline.commands.check import check_for
from fer_pipeline.core.files import refuse_link, write_json
from fer_pipeline.core.settings import STORE, ProjectSettings, Summary
from fer_pipeline.health.software import installed_version
from fer_pipeline.run_inputs import RunInputs
from fer_pipeline.sharding.locks import lock_for_run
from fer_pipeline.sharding.run import ProgressFile

SHARDED_STAGES = ("align", "embed")  # they write their progress file themselves, with counts of shards
# The checked-out commit, with a mark where tracked files differ from it.
COMMIT = ("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
PACKAGES = ("fer_pipeline", "torch", "torchvision", "numpy", "pyarrow", "pillow")


def run_stage(stage: str, options: Mapping[str, Any], *, params: Path) -> tuple[Summary, Callable[[], None]]:
    """Calls the `run` of a stage with its checked settings, those of the project, and the options.

    Only one run of a stage and name works on a store at a time; a second one is refused with a DataError. The name is
    made of the options that are plain text: a data set, a pool, a recipe and its target.

    Returns:
        What the stage made, and what raises a DataError where something that it read has changed since; that is to be
        called as late as can be, before DVC records the result.
    """
    store, inputs = options.get("store", STORE), RunInputs(stage, params, options)
    for path in inputs.outputs:
        refuse_link(path)
    checked = check_for(stage, params, remembered=store / "memory" / "checked")
    run = checked.modules[stage].run
    parameters = inspect.signature(run).parameters.values()
    name = "-".join(options[one.name] for one in parameters if one.annotation is str)
    owner = f"{stage}@{name}" if name else stage
    started, clock = datetime.now(UTC), time.monotonic()
    with lock_for_run(store, owner) as warnings:
        inputs.add_settings(checked)
        with nullcontext() if stage in SHARDED_STAGES else ProgressFile(store, stage, name).follow():
            summary = run(checked.configs[stage], limit_workers(checked.project), **options)
        record: dict[str, Any] = {
            "stage": stage,
            "arguments": sys.argv[1:],
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "host": platform.node(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": {name: installed_version(name) for name in PACKAGES},
            "commit": (run_git(Path(), *COMMIT) or "").strip() or None,
        }
        write_json(store / "provenance" / f"{owner}.json", record)
    return replace(summary, warnings=(*warnings, *summary.warnings)), inputs.require_unchanged


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
