"""`refresh` and `sweep` on a small world whose numbers can be computed by hand.

`raw` holds words; mining keeps the share `1 - mine.value` of them; an accuracy is a thousandth of what was kept.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from pipelines.refresh import refresh
from pipelines.sweep import sweep

GRAPH = """
stages:
  mine:
    cmd: python make.py mine
    deps: [raw, make.py]
    params: [mine]
    outs: [data/mined]
  evaluate:
    cmd: python make.py evaluate
    deps: [data/mined, make.py]
    params: [seeds]
    metrics: [reports/metrics/vas/film.json]
"""
MAKE = """
import json, pathlib, sys
import yaml
params = yaml.safe_load(open("params.yaml"))
words = sum(len(path.read_text().split()) for path in pathlib.Path("raw").glob("*"))
summary, figures = pathlib.Path("data/mined/summary.json"), pathlib.Path("reports/metrics/vas/film.json")
if params["mine"]["value"] > 0.8:
    sys.exit("nothing passes such a margin")
if sys.argv[1] == "mine":
    kept = round(words * (1 - params["mine"]["value"]))
    summary.parent.mkdir(parents=True)
    told = {"kept": kept, "margins": {"joy": params["mine"]["value"]}, "by_class": {"joy": {"kept": kept}}}
    summary.write_text(json.dumps(told))
else:
    figures.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(summary.read_text())["kept"]
    figures.write_text(json.dumps({"mean_class_accuracy": kept / 1000 + params["seeds"][0]}))
"""
PARAMS = "anchor: studio\npools: [street] # unlabelled\nmine: {value: 0.25} # the margin\nseeds: [0]\n"


def shell(folder: Path, *command: str) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def world(tmp_path: Path, new_repository: Callable[..., Path]) -> Path:
    files = {"dvc.yaml": GRAPH, "make.py": MAKE, "params.yaml": PARAMS, ".gitignore": "/data\n/raw\n/reports\n"}
    folder = new_repository(tmp_path / "world", {**files, "raw/a.txt": "word " * 100})
    shell(folder, "git", "rm", "-r", "-q", "--cached", "--ignore-unmatch", "raw")
    shell(
        folder, sys.executable, "-m", "dvc", "remote", "add", "--local", "-q", "-d", "store", str(tmp_path / "remote")
    )
    return folder


@pytest.fixture
def at_the_server(server: str, server_environment: dict[str, str]) -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: server, PREFECT_HOME: server_environment["PREFECT_HOME"]}):
        yield


def artifact(key: str) -> str:
    """The last one of that key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}}))
    return str(max(found, key=lambda one: one.created).data)


@pytest.mark.usefixtures("at_the_server")
def test_a_version_on_a_branch_pushed_when_the_remote_is_back(world: Path, tmp_path: Path) -> None:
    head = shell(world, "git", "rev-parse", "HEAD")
    options: dict[str, Any] = {"workspace": str(world), "push": True, "return_state": True}

    # The remote is down: the version is there, and not lost.
    (tmp_path / "remote").write_text("no folder")
    state = refresh(**options)
    assert state.is_failed()
    assert "the version is committed but not pushed, the next run tries again" in state.message
    first = shell(world, "git", "rev-parse", "refresh")
    assert shell(world, "git", "rev-parse", "refresh^") == head
    assert shell(world, "git", "diff", "--name-only", head, first) == "dvc.lock"
    assert shell(world, "git", "show", f"{first}:dvc.lock") == (world / "dvc.lock").read_text().strip()
    assert shell(world, "git", "rev-parse", "HEAD") == head
    assert shell(world, "git", "status", "--porcelain") == "?? dvc.lock"

    # Nothing is new, yet what could not be brought away goes now.
    (tmp_path / "remote").unlink()
    state = refresh(**options)
    assert (state.name, state.message) == ("Unchanged", "Nothing changed.; pushed")
    assert shell(world, sys.executable, "-m", "dvc", "status", "--cloud").endswith("are in sync.")
    assert shell(world, "git", "rev-parse", "refresh") == first

    # 50 words more: round(150 × 0.75) = 112 are kept, 37 more than before.
    (world / "raw" / "b.txt").write_text("word " * 50)
    state = refresh(**options)
    assert state.message.startswith("3 figures changed; "), state.message
    assert shell(world, "git", "rev-parse", "refresh^") == first
    assert "mined joy: kept: 75 → 112" in shell(world, "git", "log", "-1", "--format=%b", "refresh")
    table = artifact("difference")
    assert "| mined: kept | 75 | 112 | +37 |" in table
    assert "| vas on film: mean\\_class\\_accuracy | 0.0750 | 0.1120 | +0.0370 |" in table
    record = json.loads((world / "reports" / "refresh.json").read_text())
    assert {"what": "mined: kept", "before": 75, "after": 112} in record["changes"]

    # A version that nobody could make again is refused.
    (world / "params.yaml").write_text(PARAMS.replace("0.25", "0.5"))
    state = refresh(**options)
    assert state.name == "Refused"
    assert state.message == (f"uncommitted changes in {world}: params.yaml; commit or stash them, or set allow_dirty")


@pytest.mark.usefixtures("at_the_server")
def test_a_sweep_leaves_experiments_a_table_and_what_failed(world: Path) -> None:
    shell(world, "git", "status")
    state = sweep(grid={"mine.valu": [0.1]}, workspace=str(world), return_state=True)
    assert state.message == "params.yaml has no setting 'mine.valu' (nothing is named 'valu'; there are value)"

    state = sweep(grid={"mine.value": [0.1, 0.9]}, jobs=2, workspace=str(world), return_state=True)
    assert state.is_failed()
    assert state.message == "1 of 2 experiments failed: mine.value-0.9. Run again to go on from there."
    rows = json.loads(artifact("sweep"))
    assert rows[0] == {
        "experiment": "mine.value-0.1",
        "mine.value": "0.1",
        "state": "Completed",
        "mined": "90",
        "vas on film": "0.0900",
    }
    assert "mine failed; 2 stages: 1 Failed, 1 Skipped" in rows[1]["state"]
    listed = shell(world, sys.executable, "-m", "dvc", "exp", "list", "--name-only")
    assert listed.split() == ["mine.value-0.1"]
    assert {path.name for path in world.parent.glob("world@*")} == {"world@mine.value-0.9"}, "what failed can go on"
    saved = shell(world, "git", "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/mine.value-0.1")
    shown = shell(world, "git", "show", f"{saved}:params.yaml")
    assert yaml.safe_load(shown) == {**yaml.safe_load(PARAMS), "mine": {"value": 0.1}}
    assert "# the margin" in shown
    assert (world / "params.yaml").read_text() == PARAMS
    assert not (world / "data").exists(), "the workspace itself is left alone"


@pytest.mark.usefixtures("at_the_server")
def test_a_sweep_that_resumes_makes_nothing_finished_again(world: Path) -> None:
    """As after a kill: of two one is finished. It stays the very commit; another base or setting is another one."""

    def saved() -> dict[str, str]:
        lines = shell(world, "git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
        return {
            line.partition(" ")[0].rpartition("/")[2]: line.rpartition(" ")[2] for line in lines if "stash" not in line
        }

    def run(targets: list[str] | None = None) -> dict[str, str]:
        grid = {"mine.value": [0.1, 0.2]}
        state = sweep(grid=grid, targets=targets, resume=True, workspace=str(world), return_state=True)
        assert state.is_completed(), artifact("sweep")
        return {row["experiment"]: row["state"] for row in json.loads(artifact("sweep"))}

    # What ran some stages only is an experiment of that name with these settings as well.
    assert set(run(["mine"]).values()) == {"Completed"}
    assert set(run(["mine"]).values()) == {"Completed earlier"}
    shell(world, sys.executable, "-m", "dvc", "exp", "remove", "mine.value-0.2")
    sweep(grid={"mine.value": [0.1]}, resume=True, workspace=str(world), return_state=True)
    first = saved()["mine.value-0.1"]
    assert "reports/metrics" in shell(world, "git", "show", f"{first}:dvc.lock")
    assert run(["mine"]) == {"mine.value-0.1": "Completed earlier", "mine.value-0.2": "Completed"}
    assert run() == {"mine.value-0.1": "Completed earlier", "mine.value-0.2": "Completed"}
    assert saved()["mine.value-0.1"] == first
    assert run() == dict.fromkeys(("mine.value-0.1", "mine.value-0.2"), "Completed earlier")

    (world / "params.yaml").write_text(PARAMS.replace("seeds: [0]", "seeds: [1]"))
    shell(world, "git", "commit", "-qam", "another seed")
    assert run() == dict.fromkeys(("mine.value-0.1", "mine.value-0.2"), "Completed")
