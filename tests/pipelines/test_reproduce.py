"""The flow beside DVC itself: states, order, failures, targets, and the same `dvc.lock` as `dvc repro`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from pipelines import process_tree
from pipelines.reproduce import reproduce, run_stage
from tests.prefect_server import Api

GRAPH = """
stages:
  split:
    desc: numbers by their last digit
    cmd: python split.py
    deps: [raw, split.py]
    outs: [data/even, data/odd]
  count:
    foreach: [even, odd]
    do:
      desc: how many ${item} numbers
      cmd: python -c "import sys; sys.stdout.write(str(len(open('data/${item}').read().split())))" > data/count-${item}
      deps: ["data/${item}"]
      outs: ["data/count-${item}"]
      meta: {gpu: true}
  gate:
    cmd: test -e open && echo through > data/gate
    deps: [data/count-odd]
    outs: [data/gate]
  sum:
    cmd: cat data/count-even data/gate > data/sum
    deps: [data/count-even, data/gate]
    outs: [data/sum]
  twice:
    cmd: cat data/sum data/sum > data/twice
    deps: [data/sum]
    outs: [data/twice]
"""
SPLIT = """
from pathlib import Path
numbers = [int(word) for path in sorted(Path("raw").iterdir()) for word in path.read_text().split()]
Path("data").mkdir(exist_ok=True)
Path("data/even").write_text("\\n".join(str(n) for n in numbers if n % 2 == 0))
Path("data/odd").write_text("\\n".join(str(n) for n in numbers if n % 2))
"""


def make_world(folder: Path) -> Path:
    """A repository in which six stages stand on each other; `gate` fails until there is a file `open`."""
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "a.txt").write_text("1 2 3 4 5")
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "split.py").write_text(SPLIT)
    (folder / ".gitignore").write_text("/raw\n/data\n/open\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    author = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", *author, "commit", "-qm", "one"], cwd=folder, check=True)
    return folder


class Runs:
    """Starts flows as a person would, on the tests' server, and asks the server what it knows of them."""

    def __init__(self, api: Api, environment: dict[str, str], root: Path) -> None:
        self.api, self.environment = api, {**environment, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def reproduce(self, folder: Path, **options: Any) -> State[Any]:
        """The flow in this process, which has paid for its imports."""
        with temporary_settings({PREFECT_API_URL: self.api.url, PREFECT_HOME: self.environment["PREFECT_HOME"]}):
            return reproduce(workspace=str(folder), return_state=True, **options)

    def command(self, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines", *words]
        return subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)

    def last_run(self, workspace: Path) -> dict[str, Any]:
        runs = self.api.ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 50})
        return next(run for run in runs if any(tag.endswith(f":{workspace}") for tag in run["tags"]))

    def states(self, run: dict[str, Any]) -> dict[str, str]:
        return self.api.states(run["id"])

    def message(self, run: dict[str, Any], stage: str) -> str:
        tasks = self.api.tasks(run["id"])
        return next(task["state"]["message"] for task in tasks if task["name"] == stage)


@pytest.fixture(scope="module")
def runs(server: str, server_environment: dict[str, str], root: Path) -> Runs:
    return Runs(Api(server), server_environment, root)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("flow") / "world")


def test_a_failure_a_restart_and_the_rest_in_one_story(runs: Runs, world: Path, tmp_path: Path) -> None:
    # A stage fails: what does not stand on it is finished, what does is skipped, and the message says why.
    told = runs.command("reproduce", folder=world)
    assert told.returncode == 1
    assert "gate failed; 6 stages: 3 Completed, 1 Failed, 2 Skipped" in told.stdout
    assert "Traceback" not in told.stdout + told.stderr
    run = runs.last_run(world)
    assert run["state_type"] == "FAILED"
    assert runs.states(run) == {
        "split": "Completed",
        "count@even": "Completed",
        "count@odd": "Completed",
        "gate": "Failed",
        "sum": "Skipped",
        "twice": "Skipped",
    }
    assert "exit code" in runs.message(run, "gate")
    assert "Running stage 'gate'" in runs.message(run, "gate"), "the last lines belong to the message"
    assert runs.message(run, "sum") == "sum: not run: gate failed"
    assert runs.message(run, "twice") == "twice: not run: gate failed"

    # Mended, it goes on from the failed stage; what was finished is shown as it is.
    (world / "open").touch()
    assert runs.reproduce(world).is_completed()
    run = runs.last_run(world)
    assert runs.states(run) == {
        "split": "Cached",
        "count@even": "Cached",
        "count@odd": "Cached",
        "gate": "Completed",
        "sum": "Completed",
        "twice": "Completed",
    }
    table = json.loads(runs.api.artifacts(run["id"])["stages"]["data"])
    assert [row["stage"] for row in table] == ["split", "count@even", "count@odd", "gate", "sum", "twice"]
    assert {row["stage"]: row["state"] for row in table} == runs.states(run)

    # DVC alone makes the same bytes of everything, the lock included.
    plain = make_world(tmp_path / "plain")
    (plain / "open").touch()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    dvc = [sys.executable, "-m", "dvc", "repro", "-q"]
    subprocess.run(dvc, cwd=plain, env={**os.environ, "PATH": path}, check=True, capture_output=True)
    assert (world / "dvc.lock").read_bytes() == (plain / "dvc.lock").read_bytes()
    assert {p.name: p.read_bytes() for p in (world / "data").iterdir()} == {
        p.name: p.read_bytes() for p in (plain / "data").iterdir()
    }


def test_nothing_to_do_starts_no_process_of_a_stage(runs: Runs, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "run_command", pytest.fail)
    assert runs.reproduce(world, gpus=["0"]).message == "6 stages: 6 Cached"
    assert set(runs.states(runs.last_run(world)).values()) == {"Cached"}, "no limit is needed, since no GPU is"
    # With a target, that and what it needs.
    assert runs.reproduce(world, targets=["data/count-even"]).is_completed()
    assert runs.states(runs.last_run(world)) == {"split": "Cached", "count@even": "Cached"}
    assert runs.last_run(world)["name"] == "reproduce · data/count-even"


def test_the_same_inputs_again_come_from_the_run_cache(runs: Runs, world: Path) -> None:
    (world / "raw" / "b.txt").write_text("6 7 8")
    assert runs.reproduce(world, targets=["count@even"]).is_completed()
    assert (world / "data" / "count-even").read_text() == "4"
    (world / "raw" / "b.txt").unlink()
    assert runs.reproduce(world, targets=["count@even"]).is_completed()
    assert runs.states(runs.last_run(world)) == {"split": "RunCache", "count@even": "RunCache"}
    assert (world / "data" / "count-even").read_text() == "2"


def test_stages_with_a_gpu_need_the_limit_see_only_their_gpu_and_give_the_slot_back(runs: Runs, world: Path) -> None:
    script = "import os, sys; sys.stdout.write(os.environ['CUDA_VISIBLE_DEVICES'])"
    (world / "dvc.yaml").write_text(
        GRAPH
        + f"""
  seen:
    foreach: [a, b]
    do:
      cmd: python -c "{script}" > data/seen-${{item}}
      outs: ["data/seen-${{item}}"]
      meta: {{gpu: true}}
"""
    )
    # Without the limit a line says how to make it.
    assert runs.reproduce(world, targets=["seen@a"], gpus=["0"], gpu_limit="none-such").is_failed()
    message = runs.message(runs.last_run(world), "seen@a")
    assert "prefect global-concurrency-limit create none-such" in message
    assert "Traceback" not in message

    runs.api.ask("/v2/concurrency_limits/", {"name": "gpu-of-this-test", "limit": 1, "active": True})
    state = runs.reproduce(world, targets=["seen"], gpus=["4", "7"], gpu_limit="gpu-of-this-test")
    assert state.message == "2 stages: 2 Completed"
    assert {(world / "data" / f"seen-{name}").read_text() for name in "ab"} == {"4", "7"}
    limits = runs.api.ask("/v2/concurrency_limits/filter", {"limit": 50})
    assert {one["name"]: one["active_slots"] for one in limits}["gpu-of-this-test"] == 0


def test_a_wrong_wish_is_one_line(runs: Runs, world: Path) -> None:
    state = runs.reproduce(world, targets=["cuont"])
    assert state.is_failed()
    assert "no stage, group or output is named 'cuont'; did you mean count?" in (state.message or "")
    state = runs.reproduce(world, rev="nowhere")
    assert "'nowhere' is no commit, branch or tag" in (state.message or "")
    state = runs.reproduce(world, cores=0)
    assert state.message == "cores is 0; it is a number from 1"


def test_a_stage_is_tried_again_as_often_as_its_meta_says(
    runs: Runs, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = "mkdir -p data && echo x >> tries && test $(wc -l < tries) -ge ${item} && echo > data/tried-${item}"
    (world / "dvc.yaml").write_text(
        f"stages:\n  tried:\n    foreach: [3, 9]\n    do:\n      cmd: {counts}\n"
        '      outs: ["data/tried-${item}"]\n      meta: {retries: 2}\n'
    )
    monkeypatch.setattr(run_stage, "retry_delay_seconds", [0.1])
    assert runs.reproduce(world, targets=["tried@3"]).is_completed()
    assert len((world / "tries").read_text().split()) == 3
    (world / "tries").unlink()
    assert runs.reproduce(world, targets=["tried@9"]).is_failed()
    assert len((world / "tries").read_text().split()) == 3
    assert "exit code" in runs.message(runs.last_run(world), "tried@9")


@pytest.fixture
def sleeping(world: Path, runs: Runs) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a flow whose stage sleeps until it is ended."""
    (world / "dvc.yaml").write_text("stages:\n  sleep:\n    cmd: sleep 300\n")
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipelines", "reproduce"]
        process = subprocess.Popen(
            command, cwd=world, env=runs.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("sleeping")
def test_a_stage_that_hangs_is_ended_at_its_limit(runs: Runs, world: Path) -> None:
    state = runs.reproduce(world, timeout_hours=0.0005)
    assert state.message == "sleep failed; 1 stages: 1 Failed. Run again to go on from there."
    assert "ended after 0.0005 h, its limit (meta.timeout or timeout_hours)" in runs.message(
        runs.last_run(world), "sleep"
    )


def test_two_flows_on_one_workspace_the_second_is_refused(
    runs: Runs, world: Path, sleeping: Callable[[], subprocess.Popen[str]]
) -> None:
    first = sleeping()
    assert first.stdout is not None
    for line in first.stdout:
        if "sleep 300" in line:
            break
    told = runs.reproduce(world)
    assert (told.is_cancelled(), told.name) == (True, "Refused")  # nothing is wrong with it
    assert f"{world} is in use by 'reproduce" in (told.message or "")
    assert f"(process {first.pid} on" in (told.message or "")
    # Cancelled through the server, a flow that no worker watches ends itself, its stages with it.
    run, *_ = runs.api.ask("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}})
    runs.api.ask(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    rest, _ = first.communicate(timeout=180)
    assert "Cancelled" in rest.splitlines()[-2] + rest.splitlines()[-1]
    assert runs.states(run) == {"sleep": "Cancelled"}
