"""A DVC workspace in, its stages in walking order out: what each waits for, what it needs, whether it is stale.

The graph is read once and DVC is asked once what is stale, since each `dvc` process costs more than a second of CPU.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import FlowError
from pipelines.workspace import stage_environment

Cores = int | Literal["all"] | None
READER = Path(__file__).with_name("dvc_reader.py")


@dataclass(frozen=True)
class Needs:
    """What the `meta` of a stage in dvc.yaml says that it needs.

    `gpu`: it holds a GPU while it runs. `cores`: so many of the core budget, `all` of it, or (None) a fair share.
    `timeout`: hours after which it is ended.
    """

    gpu: bool = False
    cores: Cores = None
    timeout: float | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of the graph; `upstream` are the addresses of the stages whose outputs it reads."""

    address: str  # align@studio
    description: str = ""
    upstream: tuple[str, ...] = ()
    needs: Needs = field(default_factory=Needs)
    stale: bool = True


def read_graph(workspace: Path, targets: Sequence[str] | None = None, *, force: bool = False) -> dict[str, Stage]:
    """The stages of a workspace by address, upstream before downstream.

    With `targets` (addresses, names of groups, outputs), only those and what they need. `force` takes all for stale.
    Raises FlowError for a folder without DVC, an unknown target or a dvc.yaml that DVC refuses.
    """
    told = _ask(workspace, targets, force=force)
    return {
        stage["address"]: Stage(
            stage["address"],
            stage["description"],
            tuple(stage["upstream"]),
            read_needs(stage["address"], stage["meta"]),
            stage["stale"],
        )
        for stage in told["stages"]
    }


def raw_inputs(workspace: Path) -> list[str]:
    """The paths below a workspace that its stages read and that no stage or .dvc file of it makes."""
    return _ask(workspace, None, force=True)["raw"]  # forced: then nothing is hashed


def read_needs(address: str, meta: Any) -> Needs:
    """The needs in a stage's `meta`; the rest of it is the user's own. FlowError for a value that means nothing."""
    if not isinstance(meta, Mapping):
        return Needs()
    gpu, cores, timeout = meta.get("gpu", False), meta.get("cores"), meta.get("timeout")
    if not isinstance(gpu, bool):
        raise FlowError(f"{address}: meta.gpu is {gpu!r}; it is true or false")
    if not (cores is None or cores == "all" or (type(cores) is int and cores >= 1)):
        raise FlowError(f"{address}: meta.cores is {cores!r}; it is a number of cores from 1, or all")
    if not (timeout is None or (type(timeout) in (int, float) and timeout > 0)):
        raise FlowError(f"{address}: meta.timeout is {timeout!r}; it is a number of hours above 0")
    return Needs(gpu, cores, timeout)


def _ask(workspace: Path, targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """What the reader tells of a workspace."""
    if not workspace.is_dir():
        raise FlowError(f"{workspace} is no folder; name the workspace that holds dvc.yaml")
    wish = json.dumps({"targets": list(targets) if targets else None, "force": force})
    # -I keeps a file of the workspace that is named like a module from being imported.
    command = [sys.executable, "-I", str(READER)]
    done = subprocess.run(
        command, cwd=workspace, env=stage_environment(), input=wish, capture_output=True, text=True, check=False
    )
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FlowError(f"DVC could not read the graph of {workspace}: {last}; try `dvc status` there") from None
    if "error" in told:
        raise FlowError(f"{told['error']} (workspace {workspace})")
    return told
