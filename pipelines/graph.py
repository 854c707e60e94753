"""Read the stages of a DVC workspace: what each waits for, what it needs, whether it is stale.

The graph is read once and DVC is asked once what is stale, since each `dvc` process costs more than a second of CPU.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines import FlowError
from pipelines.workspace import stage_environment

Cores = int | Literal["all"] | None


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
    """Return the stages of a workspace by address, upstream before downstream.

    With `targets` (addresses, names of groups, outputs), only those and what they need. `force` takes all for stale.
    Raises FlowError for a folder without DVC, an unknown target or a dvc.yaml that DVC refuses.
    """
    return {
        address: Stage(address, stage["description"], tuple(stage["upstream"]), read_needs(address, stage["meta"]),
                       stage["stale"])
        for address, stage in _ask_dvc(workspace, targets, force=force)["stages"].items()
    }  # fmt: skip


def list_raw_inputs(workspace: Path) -> list[str]:
    """Return the paths below a workspace that its stages read and that no stage or .dvc file of it makes."""
    return _ask_dvc(workspace, None, force=True)["raw"]  # forced: then nothing is hashed


def read_needs(address: str, meta: Any) -> Needs:
    """Return the needs in a stage's `meta`; the rest is the user's own. FlowError for a value that means nothing."""
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


def _ask_dvc(workspace: Path, targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """Return what `dvc_reader.py` prints in a workspace."""
    if not workspace.is_dir():
        raise FlowError(f"{workspace} is no folder; name the workspace that holds dvc.yaml")
    # -I keeps a file of the workspace that is named like a module from being imported.
    command = [sys.executable, "-I", str(Path(__file__).with_name("dvc_reader.py"))]
    request = json.dumps({"targets": list(targets) if targets else None, "force": force})
    done = subprocess.run(
        command, cwd=workspace, env=stage_environment(), input=request, capture_output=True, text=True, check=False
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FlowError(f"DVC could not read the graph of {workspace}: {last}; try `dvc status` there") from None
    if "error" in answer:
        raise FlowError(f"{answer['error']} (workspace {workspace})")
    return answer
