"""A copy of the project with a tiny world, in which the whole walk takes seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COPIED = ("fer_pipeline", "dvc.yaml", ".dvc/config", ".dvcignore", "data/truth/README.md", "data/distilled/README.md")
Settings = dict[str, Any]


def tiny(params: Settings) -> Settings:
    """The demo's settings, shrunk: three classes, one pool, one foreign target, short trainings."""
    raise AssertionError("filled in below")


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Callable[[str], Path]:
    """Makes independent copies of the project by name."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        for item in COPIED:
            source, copy = root / item, folder / item
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, copy)
        params = tiny(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8")))
        write_params(folder, params)
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        return folder

    return make


def write_params(folder: Path, params: Settings) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def read_params(folder: Path) -> Settings:
    return yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))


def dvc(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs DVC in a copy, with this environment's Python first in the path and a site cache of its own."""
    binaries = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        "OMP_NUM_THREADS": "1",
    }
    told = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert not check or told.returncode == 0, told.stdout[-4000:] + told.stderr[-4000:]
    return told
