"""A copy of the project with a tiny world, in which the whole walk takes seconds."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prefect_server import ENDS, Api
from tests.project import QUICK_DISTILLATION

COPIED = (
    "fer_pipeline",
    "pipelines",
    "dvc.yaml",
    "prefect.yaml",
    ".dvc/config",
    ".dvcignore",
    "data/review.csv",
    "data/truth/README.md",
    "data/distilled/README.md",
)
Settings = dict[str, Any]


def tiny(params: Settings) -> Settings:
    """The demo's settings, shrunk: three classes, one pool, one target, two seeds, a few steps.

    A recipe without mined faces, and one that takes both what is mined and what is distilled of it: every stage costs
    seconds, whatever it does.
    """
    classes = ["happiness", "neutral", "surprise"]
    drawn = {"acting": {"intensity": [0.8, 1.0]}, "classes": classes}
    training = {"epochs": None, "steps": 6, "batch": 16, "select": "last"}
    network = {"name": "small", "width": 4}
    sources = {**params["recipes"]["vas"]["sources"], **params["recipes"]["das"]["sources"]}
    recipes = {
        "baseline": params["recipes"]["baseline"],
        "both": {"strategy": "supervised", "sources": sources, "deps": [*sources.values()]},
    }
    return {
        **params,
        "classes": classes,
        "seeds": [0, 1],
        "resources": {"device": "cpu", "workers": 1},
        "pools": ["street"],
        "targets": ["film"],
        "datasets": {name: params["datasets"][name] for name in ("studio", "street", "film")},
        "recipes": recipes,
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
            **QUICK_DISTILLATION,
        },
        "train_final": {"network": network, "training": training, "validation": 0},
        "evaluate": {"recipes": list(recipes), "bootstrap": 100},
        "report": {},
    }


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        for item in COPIED:
            source, copy = root / item, folder / item
            copy.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, copy)  # with its compiled code, which holds for equal times of change
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
        own = json.loads(json.dumps(params))  # without aliases, which `dvc exp run -S` would change together
        (self / "params.yaml").write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")

    def change(self, **sections: Any) -> None:
        """Replaces keys within sections, or whole sections that are no mappings."""
        params = self.params
        for name, value in sections.items():
            params[name] = {**params[name], **value} if isinstance(value, dict) else value
        self.write(params)

    @property
    def environment(self) -> dict[str, str]:
        """Of whatever runs in the project: this Python first in the path, DVC's own memory beside the project."""
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "OMP_NUM_THREADS": "1",
        }

    def dvc(self, *words: str, check: bool = True) -> str:
        """What DVC says."""
        command = [sys.executable, "-m", "dvc", *words]
        told = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        text = told.stdout + told.stderr
        assert (told.returncode == 0) == check, text[-6000:]
        return text

    def below(self, stage: str) -> set[str]:
        """A stage and all that stand on what it makes, by DVC's own graph."""
        import networkx
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            graph = networkx.relabel_nodes(repo.index.graph, {node: node.name for node in repo.index.graph})
        return {stage, *networkx.ancestors(graph, stage)}

    def commands(self) -> list[list[str]]:
        """The words after `python -m fer_pipeline` of every stage, each after those it depends on."""
        import networkx
        from dvc.repo import Repo

        with Repo(str(self.folder)) as repo:
            order = networkx.topological_sort(repo.index.graph.reverse())  # DVC's edges point to what is depended on
            return [shlex.split(stage.cmd[-1] if isinstance(stage.cmd, list) else stage.cmd)[3:] for stage in order]

    def files(self) -> dict[str, str]:
        """The hash of every file that is promised to be equal for equal seeds: all but the page and the clock's."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for room in ("data", "models", "reports/metrics", "reports/census")
            for path in sorted((self / room).rglob("*"))
            if path.is_file() and path.name != ".gitignore"
        }

    def locked(self) -> dict[str, Any]:
        """What dvc.lock says of every stage's command, settings and outputs, less those that hold the clock's times.

        DVC leaves a .gitignore beside what it makes, so that folders which are inputs differ by that.
        """
        stages = yaml.safe_load((self / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        timed = ("reports/timings", "reports/index.html", "reports/tables", "reports/figures")
        return {
            name: {
                "cmd": stage["cmd"],
                "params": stage.get("params"),
                "outs": [one for one in stage["outs"] if not one["path"].startswith(timed)],
            }
            for name, stage in stages.items()
        }


class Scheduled:
    """A project's deployment on a real server, fired by its schedule, run by a real worker."""

    def __init__(self, project: Project, api: Api, environment: dict[str, str]) -> None:
        self._api = api
        mine = {name: value for name, value in environment.items() if name.startswith("PREFECT_")}
        self.environment = {**project.environment, **mine, "PYTHONPATH": "", "NO_COLOR": "1"}
        api.ask("/work_pools/", {"name": "local", "type": "process"})
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "reproduce/reproduce-local"]
        told = subprocess.run(command, cwd=project.folder, env=self.environment, capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr
        worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "local", "--limit", "1"]
        self._log = project.folder.parent / "worker.log"
        with self._log.open("wb") as log:
            self.worker = subprocess.Popen(
                worker,
                cwd=project.folder.parent,
                env={**self.environment, "PIPELINES_WORKSPACE": str(project.folder)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def fire(self, times: int) -> list[dict[str, Any]]:
        """The runs that a schedule of so many times started, when all have ended."""
        deployment = self._api.ask("/deployments/name/reproduce/reproduce-local")["id"]
        begin = datetime.now(UTC) + timedelta(seconds=5)
        rule = f"DTSTART:{begin:%Y%m%dT%H%M%S}\nRRULE:FREQ=SECONDLY;INTERVAL=5;COUNT={times}"
        self._api.ask(f"/deployments/{deployment}/schedules", [{"active": True, "schedule": {"rrule": rule}}])
        wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            runs = self._api.ask("/flow_runs/filter", wanted)
            if len(runs) == times and all(run["state_type"] in ENDS for run in runs):
                return runs
            assert self.worker.poll() is None, self._log.read_text()[-4000:]
            time.sleep(1)
        raise AssertionError(self._log.read_text()[-4000:])


@pytest.fixture
def scheduled(api: Api, server_environment: dict[str, str]) -> Iterator[Callable[[Project], Scheduled]]:
    """Deploys projects; their workers end with the test."""
    made: list[Scheduled] = []

    def deploy(project: Project) -> Scheduled:
        made.append(Scheduled(project, api, server_environment))
        return made[-1]

    yield deploy
    for one in made:
        one.worker.kill()
        one.worker.wait()


@pytest.fixture
def project(tmp_path: Path, root: Path) -> Callable[[str], Project]:
    """Makes independent copies of the project by name."""
    return lambda name: Project(root, tmp_path / name)
