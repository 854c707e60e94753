"""A copy of the project with a tiny world, in which the whole walk takes seconds."""

import hashlib
import os
import shlex
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
    """The demo's settings, shrunk: three classes, one pool, two targets, two seeds, a dozen steps."""
    classes = ["happiness", "neutral", "surprise"]
    drawn = {"acting": {"intensity": [0.8, 1.0]}, "classes": classes}
    training = {"epochs": None, "steps": 12, "batch": 16, "select": "last"}
    network = {"name": "small", "width": 4}
    recipes = ("baseline", "vas", "das")
    return {
        **params,
        "classes": classes,
        "seeds": [0, 1],
        "resources": {"device": "cpu", "workers": 1},
        "pools": ["street"],
        "targets": ["studio", "film"],
        "datasets": {name: params["datasets"][name] for name in ("studio", "street", "film")},
        "recipes": {name: params["recipes"][name] for name in recipes},
        "synthesize": {
            "workers": 1,
            "sets": {
                "studio": {"splits": {"train": 60, "test": 12}, "subjects": 10, **drawn},
                "street": {"splits": {"train": 60}, "subjects": 20, "labelled": False, **drawn},
                "film": {"splits": {"test": 12}, "subjects": 6, "styles": {"film": 1}, **drawn},
            },
        },
        "align": {"crop": 32, "shard_rows": 20, "cut": "count"},
        "train_primitive": {
            "network": network,
            "training": training,
            "split": {"validation": 0, "heldout": 0.3},
        },
        "embed": {"sets": ["studio", "street"]},
        "mine": {"by": "count", "value": 8, "per_class": True},
        "distill": {
            "sources": {"auxiliary": "data/auxiliary"},
            "outer_epochs": 4,
            "save_every": 2,
            "epochs": 1,
            "batch_size": 8,
            "probe": {"moments": 2, "epochs": 1, "seeds": 1},
        },
        "train_final": {"network": network, "training": training, "validation": 0},
        "evaluate": {"recipes": list(recipes), "bootstrap": 100},
        "report": {"bootstrap": 100},
    }


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        for item in COPIED:
            source, copy = root / item, folder / item
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, copy)
        self.write(tiny(yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))))
        subprocess.run(["git", "init", "-q", str(folder)], check=True)

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    @property
    def params(self) -> Settings:
        return yaml.safe_load((self / "params.yaml").read_text(encoding="utf-8"))

    def write(self, params: Settings) -> None:
        (self / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def change(self, **sections: Any) -> None:
        """Replaces keys within sections, or whole sections that are no mappings."""
        params = self.params
        for name, value in sections.items():
            params[name] = {**params[name], **value} if isinstance(value, dict) else value
        self.write(params)

    def dvc(self, *words: str, check: bool = True) -> str:
        """What DVC says, run with this Python first in the path and a site cache of its own."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "dvc", *words]
        told = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        text = told.stdout + told.stderr
        assert (told.returncode == 0) == check, text[-6000:]
        return text

    def commands(self) -> list[list[str]]:
        """The words after `python -m fer_pipeline` of every stage, each after those it depends on."""
        import networkx
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            order = networkx.topological_sort(repo.index.graph.reverse())  # DVC's edges point to what is depended on
            return [shlex.split(stage.cmd)[3:] for stage in order]

    def files(self) -> dict[str, str]:
        """The hash of every file that is promised to be equal for equal seeds: all but the page and the clock's."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for room in ("data", "models", "reports/metrics", "reports/census")
            for path in sorted((self / room).rglob("*"))
            if path.is_file() and path.name != ".gitignore"
        }


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Callable[[str], Project]:
    """Makes independent copies of the project by name."""
    return lambda name: Project(root, tmp_path / name)
