"""What params.yaml says that a person wants to read in a run's name and tables; the pipeline itself checks the file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import FlowError


def read_params(workspace: Path) -> dict[str, Any]:
    """The settings of a workspace; an empty dict where they cannot be read."""
    try:
        content = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):  # ValueError: a date that is none, text that is no UTF-8
        return {}
    return content if isinstance(content, dict) else {}


def about(workspace: Path) -> str:
    """`studio + street, studio_pool → baseline, vas, das`: anchor, pools, recipes; else the folder's name."""
    params = read_params(workspace)
    pools, recipes = params.get("pools"), params.get("recipes")
    sets = [str(params["anchor"])] if params.get("anchor") else []
    if isinstance(pools, list | dict) and pools:
        sets.append(", ".join(map(str, pools)))
    if not sets:
        return workspace.name
    return " + ".join(sets) + (
        f" → {', '.join(map(str, recipes))}" if isinstance(recipes, list | dict) and recipes else ""
    )


def read_grid(settings: Sequence[str]) -> dict[str, list[Any]]:
    """`["mine.value=0.2,0.3"]` as `{"mine.value": [0.2, 0.3]}`; values are YAML. FlowError for anything else."""
    grid: dict[str, list[Any]] = {}
    for setting in settings:
        path, equals, values = setting.partition("=")
        try:
            read = yaml.safe_load(f"[{values}]")
        except (yaml.YAMLError, ValueError):
            read = None
        if not (path.strip() and equals and read) or path.strip() in grid:
            raise FlowError(f"{setting!r} is no setting to vary; say PATH=VALUE,VALUE once each, as mine.value=0.2,0.3")
        grid[path.strip()] = read
    return grid
