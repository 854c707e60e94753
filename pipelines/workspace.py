"""Find and describe the workspace of a run, give its stages their environment, and keep the order of its dvc.lock.

DVC appends a stage to `dvc.lock` when it is done, and where stages run side by side that order is accidental;
`order_new_stages` leaves the bytes that `dvc repro` alone would leave.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from pipelines import TELEMETRY_OFF, FlowError

LOCK = "dvc.lock"
STAGE_SETTINGS = {**TELEMETRY_OFF, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


def find_workspace(given: str | None = None) -> Path:
    """Return the folder of dvc.yaml: the given one, PIPELINES_WORKSPACE, or the working directory; else FlowError."""
    folder = Path(given or os.environ.get("PIPELINES_WORKSPACE") or ".").expanduser().resolve()
    for needed in ("dvc.yaml", ".dvc"):
        if not (folder / needed).exists():
            raise FlowError(f"{folder} has no {needed}; name the workspace or set PIPELINES_WORKSPACE")
    return folder


def stage_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a stage: this process's own, telemetry off, `python` is the one that runs the flow."""
    binaries = str(Path(sys.executable).parent)
    paths = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path and path != binaries]
    return {**os.environ, **STAGE_SETTINGS, "PATH": os.pathsep.join([binaries, *paths]), **(more or {})}


def read_params(workspace: Path) -> dict[str, Any]:
    """Return the settings of a workspace for names and tables; an empty dict where they cannot be read."""
    try:
        content = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):  # ValueError: a date that is none, text that is no UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def describe_workspace(workspace: Path) -> str:
    """Return `studio + street, studio_pool → baseline, vas, das`: anchor, pools, recipes; else the folder's name."""
    params = read_params(workspace)
    anchor = [str(params["anchor"])] if params.get("anchor") else []
    pools, recipes = (
        [", ".join(map(str, params[key]))] if isinstance(params.get(key), list | dict) and params[key] else []
        for key in ("pools", "recipes")
    )
    if not anchor + pools:
        return workspace.name
    return " → ".join([" + ".join(anchor + pools), *recipes])


def read_locked_stages(path: Path) -> list[str]:
    """Return the stages of a dvc.lock in its order; none where there is no file."""
    content = YAML(typ="safe").load(path) if path.exists() else None
    return list((content or {}).get("stages") or {})


def order_new_stages(path: Path, before: Sequence[str], order: Sequence[str]) -> bool:
    """Put the stages that were not in the dvc.lock `before` behind those that were, as in `order`.

    Returns whether that changed the file. A file that is not laid out as DVC writes it is left as it is.
    """
    names, places = read_locked_stages(path), {address: place for place, address in enumerate(order)}
    new = sorted((name for name in names if name not in before), key=lambda name: places.get(name, len(places)))
    if (ordered := [*(name for name in before if name in names), *new]) == names:
        return False
    yaml_file, same, changed = YAML(), StringIO(), StringIO()
    yaml_file.default_flow_style = False
    content = YAML(typ="safe").load(path)
    yaml_file.dump(content, same)
    content["stages"] = {name: content["stages"][name] for name in ordered}
    yaml_file.dump(content, changed)
    if is_dvcs := same.getvalue() == path.read_text(encoding="utf-8"):
        replace_text(path, changed.getvalue())
    return is_dvcs


def replace_text(path: Path, text: str) -> None:
    """Write a text beside a file and put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
