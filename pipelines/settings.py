"""What params.yaml says that a person wants to read in a run's name and tables; the pipeline itself checks the file."""

from pathlib import Path
from typing import Any

import yaml


def read_params(workspace: Path) -> dict[str, Any]:
    """The settings of a workspace; an empty dict where they cannot be read."""
    try:
        content = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def about(workspace: Path) -> str:
    """`studio + street, studio_pool → baseline, vas, das`: anchor, pools, recipes; else the folder's name."""
    params = read_params(workspace)
    pools, recipes = params.get("pools"), params.get("recipes")
    sets = [str(params["anchor"])] if "anchor" in params else []
    if isinstance(pools, list | dict) and pools:
        sets.append(", ".join(map(str, pools)))
    if not sets:
        return workspace.name
    return " + ".join(sets) + (
        f" → {', '.join(map(str, recipes))}" if isinstance(recipes, list | dict) and recipes else ""
    )
