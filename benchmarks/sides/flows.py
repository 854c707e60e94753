"""Sides of `flows`: a graph of stages that sleep, run by DVC alone and by the flow `reproduce`; and nothing to do.

The flow's server runs beside it and is started with the set-up, as it would be on a cluster. Its cost is in no figure.
"""

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

Round = Callable[[], dict[str, Any]]


def dvc_repro(scratch: str, stages: int, seconds: float, at_once: int) -> Round:
    """`dvc repro --force`: one stage after another."""
    folder = _graph(Path(scratch) / "repro", stages, seconds)
    return lambda: _dvc(folder, "repro", "--force", "--quiet")


def flow(scratch: str, stages: int, seconds: float, at_once: int) -> Round:
    """The flow, forced, with so many cores."""
    folder = _graph(Path(scratch) / "flow", stages, seconds)
    reproduce = _reproduce(folder)

    def once() -> dict[str, Any]:
        state = reproduce(workspace=str(folder), force=True, cores=at_once, return_state=True)
        if not state.is_completed():
            raise RuntimeError(state.message)
        return {"told": state.message}

    return once


def dvc_status(scratch: str, stages: int, seconds: float, at_once: int) -> Round:
    """`dvc status` where all is up to date."""
    folder = _graph(Path(scratch) / "status", stages, 0)
    _dvc(folder, "repro", "--quiet")
    return lambda: _dvc(folder, "status")


def idle_flow(scratch: str, stages: int, seconds: float, at_once: int) -> Round:
    """The flow where all is up to date."""
    folder = _graph(Path(scratch) / "idle", stages, 0)
    _dvc(folder, "repro", "--quiet")
    reproduce = _reproduce(folder)

    def once() -> dict[str, Any]:
        state = reproduce(workspace=str(folder), return_state=True)
        if state.message != f"{stages} stages: {stages} Cached":
            raise RuntimeError(state.message)
        return {"told": state.message}

    return once


def _graph(folder: Path, stages: int, seconds: float) -> Path:
    folder.mkdir(parents=True)
    lines = ["stages:"]
    for number in range(stages):
        lines += [
            f"  nap{number}:",
            f"    cmd: sleep {seconds:g} && echo {number} > {number}.txt",
            f"    outs: [{number}.txt]",
        ]
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    _dvc(folder, "init", "--quiet")
    return folder


def _dvc(folder: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, check=True, capture_output=True)
    return {}


def _reproduce(folder: Path) -> Callable[..., Any]:
    os.environ |= {"PREFECT_HOME": str(folder.with_name("prefect")), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    from prefect.testing.utilities import prefect_test_harness

    held = ExitStack()
    held.enter_context(prefect_test_harness(server_startup_timeout=120))
    atexit.register(held.close)
    from pipelines.reproduce import reproduce

    return reproduce
