"""Reproduce every combination of some settings as a DVC experiment, and compare their results in a table.

The flow `sweep` reproduces each combination in a git work tree of its own beside the workspace (several at the same
time), with the workspace's DVC cache, so that stages which a setting does not touch are not made again. What is killed
goes on in its work tree; what is finished is a DVC experiment (`dvc exp show`, `dvc exp apply NAME`) and its work tree
is gone.
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, Failed
from ruamel.yaml import YAML

from pipelines import FlowError
from pipelines.artifacts import fill_rows, read_results
from pipelines.cleanup import fail_in_one_line, is_ending, stop_all
from pipelines.documents import DocumentError, brief, find_alias, load_commented, parse_yaml
from pipelines.repository import (
    check_experiment_name,
    checkout_revision,
    find_experiment,
    has_made,
    remove_work_tree,
    run_git,
)
from pipelines.reproduce import Gpus, name_run, own_workspace, reproduce
from pipelines.workspace import find_workspace, replace_text

FIGURE = "mean_class_accuracy"
CANCELLED, NOT_BEGUN = "Cancelled: ", "not begun"  # how the state of a row begins and ends
EARLIER = "Completed earlier"
FOLD = ".protocol.fold"  # the first where it is not there
Settings = dict[str, Any]  # by dotted path in params.yaml


@flow(name="sweep", flow_run_name=name_run, persist_result=False)
@fail_in_one_line
def sweep(
    grid: dict[str, list[Any]],
    targets: Annotated[list[str] | None, typer.Option("--target")] = None,
    jobs: Annotated[int, typer.Option(min=1)] = 1,
    prefix: str = "",
    rev: str = "HEAD",
    resume: bool = False,
    workspace: str | None = None,
    cores: int | None = None,
    gpus: Gpus = None,
    gpu_limit: str = "gpu",
    timeout_hours: float | None = None,
) -> State[Any]:
    """Reproduce every combination of some settings as a DVC experiment.

    Args:
        grid: Lists of values by the dotted path of the setting in params.yaml; `seeds: [[0], [1]]` varies the seeds,
            and `one.fold+other.fold` sets both to each value.
        targets: Stages, groups of stages or outputs; None: all.
        jobs: How many combinations at the same time; they share cores and GPUs equally.
        prefix: What the names of the experiments begin with.
        rev: The git revision that the settings vary.
        resume: Leave out combinations of which a flow made all stages, or these targets, at this revision.
        workspace: The folder of dvc.yaml. None: PIPELINES_WORKSPACE, or the working directory.
        cores: How many cores all of them share. None: those that this process may use.
        gpus: The GPUs for stages that use one. None: those that are there.
        gpu_limit: The Prefect concurrency limit that counts GPUs.
        timeout_hours: After this long a stage is ended.
    """
    folder, trials = find_workspace(workspace), [(f"{prefix}{name_trial(one)}", one) for one in combine(grid)]
    if jobs < 1:
        raise FlowError(f"jobs is {jobs}; it is a number from 1")
    for name, _ in trials:
        check_experiment_name(name)
    # A setting that is not there is refused before hours of work.
    text = run_git(folder, "show", "--end-of-options", f"{rev}:./params.yaml")
    set_params(text, {path: values[0] for path, values in grid.items()})
    finished = {
        name for name, one in trials if resume and _is_finished(folder, rev, name, set_params(text, one), targets)
    }
    count = min(jobs, len(trials))
    share = max(1, (cores or len(os.sched_getaffinity(0))) // count)
    get_run_logger().info("%d experiments, %d at a time, %d cores each", len(trials), count, share)

    def run_trial(name: str, settings: Settings) -> dict[str, str]:
        row = {"experiment": name, **{path: _format(value) for path, value in settings.items()}}
        if name in finished:
            return {**row, "state": EARLIER}
        if is_ending():
            return {**row, "state": CANCELLED + NOT_BEGUN}
        try:
            with checkout_revision(folder, rev, name) as tree, own_workspace(tree, name):
                params = tree / "params.yaml"
                if params.is_symlink():  # what it leads to is the workspace's, or another experiment's
                    raise FlowError(f"params.yaml of {rev} is a link; commit the settings themselves, then vary them")
                replace_text(params, set_params(params.read_text(encoding="utf-8"), settings))
                state = reproduce.with_options(flow_run_name=f"reproduce · {name}")(
                    targets=targets, experiment=name, workspace=str(tree), cores=share, gpus=gpus,
                    gpu_limit=gpu_limit, timeout_hours=timeout_hours, return_state=True,
                )  # fmt: skip
                if not state.is_completed():
                    return {**row, "state": f"{CANCELLED if state.is_cancelled() else 'Failed: '}{state.message}"}
                results = read_results(tree, cast(dict[str, str], state.result()))
            remove_work_tree(folder, tree)
        except FlowError as error:
            return {**row, "state": str(error)}
        kept, metrics = results.mined.get("kept"), results.metrics.items()
        row |= {"state": "Completed", **({"mined": f"{kept:,}"} if isinstance(kept, int) else {})}
        row |= {f"{recipe} on {target}": f"{value:.4f}" for (recipe, target, key), value in metrics if key == FIGURE}
        missing = [f"{' on '.join(what)}: {why}" for what, why in results.withheld.items()]
        return {**row, "not shown": "; ".join(missing)} if missing else row

    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(copy_context().run, run_trial, *trial) for trial in trials]
        try:
            rows = [future.result() for future in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise
    create_table_artifact(
        key="sweep", table=fill_rows(rows), description=f"{FIGURE} by setting; `dvc exp apply NAME` takes one"
    )
    if ended := [row for row in rows if row["state"].startswith(CANCELLED)]:
        states = [f"{row['experiment']} {row['state'].removeprefix(CANCELLED)}" for row in ended]
        begun = "; ".join(state for state in states if not state.endswith(NOT_BEGUN))
        summary = f"{len(ended)} of {len(rows)} experiments are not finished: {begun or 'none of them had begun'}"
        return Cancelled(message=summary)
    if failed := [row["experiment"] for row in rows if row["state"] not in ("Completed", EARLIER)]:
        summary = f"{len(failed)} of {len(rows)} experiments failed: {', '.join(failed)}"
        return Failed(message=f"{summary}. Run again to go on from there.")
    earlier = f", {len(finished)} of them finished earlier" if finished else ""
    return Completed(message=f"{len(rows)} experiments{earlier}; `dvc exp show` lists them")


def _is_finished(folder: Path, rev: str, name: str, params: str, targets: Sequence[str] | None) -> bool:
    """Tell whether the experiment was made from this revision with these settings, and as much of it as is wanted."""
    commit = find_experiment(folder, rev, name)
    if commit is None or not has_made(folder, commit, targets):
        return False
    return run_git(folder, "show", f"{commit}:./params.yaml") == params.rstrip("\n")


def combine(grid: Mapping[str, Sequence[Any]]) -> list[Settings]:
    """Return all combinations of a grid, the last setting varying fastest."""
    if not grid:
        raise FlowError("the grid is empty; name a setting and its values, for example mine.value=0.2,0.3")
    for path, values in grid.items():
        if not values:
            raise FlowError(f"the grid's {path!r} is {values!r}; it is a list of at least one value")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def name_trial(settings: Settings) -> str:
    """Return a name that git and DVC take and that says what varies, `mine.value-0.3`; the same for the same."""
    words = "-".join(f"{path}-{_format(value)}" for path, value in settings.items())
    plain = "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in words).strip("-.")
    plain = re.sub(r"\.(?=\.|lock$)", "-", plain)  # which git refuses
    if plain == words.replace("[", "").replace("]", "") and len(plain) <= 60:
        return plain
    pairs = json.dumps(list(settings.items()), sort_keys=True, default=str)
    return f"{plain[:50].rstrip('-.')}-{hashlib.sha256(pairs.encode()).hexdigest()[:8]}"


def read_grid(settings: Sequence[str]) -> dict[str, list[Any]]:
    """Return `["mine.value=0.2,0.3"]` as `{"mine.value": [0.2, 0.3]}`; values are YAML. FlowError for anything else."""
    grid: dict[str, list[Any]] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        try:
            values = parse_yaml(f"[{text}]")
        except DocumentError:
            values = None
        if not (path.strip() and equals and isinstance(values, list) and values) or path.strip() in grid:
            raise FlowError(
                f"{brief(setting)} is no setting to vary; say PATH=VALUE,VALUE once each, as mine.value=0.2,0.3"
            )
        grid[path.strip()] = values
    return grid


def set_params(text: str, settings: Settings) -> str:
    """Return a params.yaml with values set by dotted path and its comments kept; FlowError for an unknown path."""
    yaml_file, out = YAML(), StringIO()
    yaml_file.preserve_quotes = True
    try:
        content = load_commented(text, yaml_file)
    except DocumentError as error:
        raise FlowError(f"params.yaml cannot be read: {error}; correct it and commit") from None
    if alias := find_alias(text):  # a value set in one place would be set in the other
        line, name = alias
        fault = f"params.yaml, line {line}: *{name} repeats what &{name} names"
        raise FlowError(f"{fault}; write the values out in both places and commit, then vary them")
    for dotted, value in ((one, value) for path, value in settings.items() for one in path.split("+")):
        inside: Any = {"": content}
        key: Any = ""
        for step in dotted.split("."):
            inside, key = inside[key], step
            if isinstance(inside, list) and step.isdigit() and int(step) < len(inside):
                key = int(step)
            elif not (isinstance(inside, dict) and (step in inside or (dotted.endswith(FOLD) and step == "fold"))):
                names = f"; there are {', '.join(map(str, inside))}" if isinstance(inside, dict) else ""
                raise FlowError(f"params.yaml has no setting {dotted!r} (nothing is named {step!r}{names})")
        inside[key] = value
    yaml_file.dump(content, out)
    return out.getvalue()


def _format(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
