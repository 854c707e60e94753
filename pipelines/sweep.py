"""The flow `sweep`: a grid of settings in, one DVC experiment a combination and a table of their results out.

Each combination is reproduced in a git work tree of its own beside the workspace (several at the same time), with the
workspace's DVC cache, so that stages which a setting does not touch are not made again. What is killed goes on in its
work tree; what is finished is a DVC experiment (`dvc exp show`, `dvc exp apply NAME`) and its work tree is gone.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.aftermath import sign, tidy_up
from pipelines.errors import FlowError, told_in_one_line
from pipelines.reproduce import reproduce, run_id
from pipelines.results import Results, results_now
from pipelines.settings import about
from pipelines.watch import stop_all
from pipelines.workspace import alone, find_workspace
from pipelines.worktree import git, remove, revision, save_experiment

FIGURE = "mean_class_accuracy"


@dataclass(frozen=True)
class Trial:
    """One combination: settings by their dotted path in params.yaml."""

    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """What git and DVC take as a name, and that says what varies: `mine.value-0.3`; the same for the same."""
        words = "-".join(f"{path}-{_word(value)}" for path, value in self.settings)
        plain = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in words).strip("-.")
        if plain == words.replace("[", "").replace("]", "") and len(plain) <= 60:
            return plain
        known = hashlib.sha256(json.dumps(self.settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{plain[:50].rstrip('-.')}-{known}"


def trials(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """All combinations of a grid, the last setting varying fastest."""
    if not grid:
        raise FlowError("the grid is empty; name a setting and its values, for example mine.value=0.2,0.3")
    for path, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise FlowError(f"the grid's {path!r} is {values!r}; it is a list of at least one value")
    return [Trial(tuple(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def _run_name() -> str:
    given = flow_run.parameters
    try:
        words = about(find_workspace(given.get("workspace")))
    except FlowError:
        words = "no workspace"
    return f"sweep · {' × '.join(given.get('grid') or {})} · {words}"


@flow(name="sweep", flow_run_name=_run_name, persist_result=False)
@told_in_one_line
def sweep(
    grid: dict[str, list[Any]],
    targets: list[str] | None = None,
    jobs: int = 1,
    prefix: str = "",
    rev: str = "HEAD",
    workspace: str | None = None,
    cores: int | None = None,
    gpus: list[str] | None = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Reproduces every combination of some settings as a DVC experiment.

    Args:
        grid: Lists of values by the dotted path of the setting in params.yaml; `seeds: [[0], [1]]` varies the seeds.
        targets: Stages, groups of stages or outputs; None: all.
        jobs: How many combinations at the same time; they share cores and GPUs equally.
        prefix: What the names of the experiments begin with.
        rev: The git revision that the settings vary.
        workspace: The folder of dvc.yaml. None: PIPELINES_WORKSPACE, or the working directory.
        cores: How many cores all of them share. None: those that this process may use.
        gpus: The GPUs for stages that use one. None: those that are there.
        gpu_limit: The Prefect concurrency limit that counts GPUs.
        timeout_hours: After this long a stage is ended.
    """
    place, wanted = find_workspace(workspace), trials(grid)
    if jobs < 1:
        raise FlowError(f"jobs is {jobs}; it is a number from 1")
    _refuse_early(place, rev, grid)
    count = min(jobs, len(wanted))
    share = max(1, (cores or len(os.sched_getaffinity(0))) // count)
    get_run_logger().info("%d experiments, %d at a time, %d cores each", len(wanted), count, share)

    def attempt(trial: Trial) -> tuple[str, Results | None]:
        try:
            return _attempt(
                place, rev, trial, f"{prefix}{trial.name}",
                targets=targets, cores=share, gpus=gpus, gpu_limit=gpu_limit, timeout_hours=timeout_hours,
            )  # fmt: skip
        except FlowError as error:
            return str(error), None

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(copy_context().run, attempt, trial) for trial in wanted]
        try:
            ends = [one.result() for one in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise
    rows = [_row(trial, f"{prefix}{trial.name}", *end) for trial, end in zip(wanted, ends, strict=True)]
    create_table_artifact(key="sweep", table=rows, description=f"{FIGURE} by setting; `dvc exp apply NAME` takes one")
    failed = [row["experiment"] for row in rows if row["state"] != "Completed"]
    if failed:
        told = f"{len(failed)} of {len(rows)} experiments failed: {', '.join(failed)}"
        return Failed(message=f"{told}. Run again to go on from there.", data=rows)
    return Completed(message=f"{len(rows)} experiments; `dvc exp show` lists them", data=rows)


def _attempt(place: Path, rev: str, trial: Trial, name: str, **options: Any) -> tuple[str, Results]:
    with revision(place, rev, name) as tree, alone(tree, name):
        tidy_up(tree, run_id(), get_run_logger())
        sign(tree, run_id())
        set_params(tree / "params.yaml", dict(trial.settings))
        state = reproduce.with_options(flow_run_name=f"reproduce · {name}")(
            workspace=str(tree), return_state=True, **options
        )
        if not state.is_completed():
            raise FlowError(f"Failed: {state.message}")
        save_experiment(tree, name)
        found = results_now(tree)
    remove(place, tree)
    return "Completed", found


def set_params(path: Path, settings: Mapping[str, Any]) -> None:
    """Sets values in a params.yaml by dotted path, keeping its comments; FlowError for a path that is not there."""
    yaml = YAML()
    yaml.preserve_quotes = True
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise FlowError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        inside = content
        for step in parents:
            inside = _step(inside, step, dotted, path)
        _step(inside, last, dotted, path)
        inside[int(last) if isinstance(inside, list) else last] = value
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    temporary.replace(path)


def _step(inside: Any, step: str, dotted: str, path: Path) -> Any:
    if isinstance(inside, Mapping) and step in inside:
        return inside[step]
    if isinstance(inside, list) and step.isdigit() and int(step) < len(inside):
        return inside[int(step)]
    known = f"; there are {', '.join(map(str, inside))}" if isinstance(inside, Mapping) else ""
    raise FlowError(f"{path.name} has no setting {dotted!r} (nothing is named {step!r}{known})")


def _refuse_early(place: Path, rev: str, grid: Mapping[str, Any]) -> None:
    """A setting that is not there is told before hours of work."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "params.yaml"
        copy.write_text(git(place, "show", f"{rev}:./params.yaml"), encoding="utf-8")
        set_params(copy, {path: values[0] for path, values in grid.items()})


def _row(trial: Trial, name: str, told: str, found: Results | None) -> dict[str, str]:
    row = {"experiment": name, **{path: _word(value) for path, value in trial.settings}, "state": told}
    if found is None:
        return row
    kept = found.mined.get("kept")
    figures = {
        f"{recipe} on {target}": f"{value:.4f}"
        for (recipe, target, figure), value in found.metrics.items()
        if figure == FIGURE
    }
    return row | ({"mined": f"{kept:,}"} if isinstance(kept, int) else {}) | figures


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
