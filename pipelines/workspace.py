"""Find a workspace, read its settings and its DVC graph, keep the order of its dvc.lock, decide which stages may start.

DVC is asked once for graph and staleness, since each `dvc` process costs more than a second of CPU. A stage starts when
all stages upstream of it have ended. One that is not stale and whose upstream stages were all up to date is up to date
itself and needs no process; one behind a failure is skipped; the others run where cores and a GPU are free.

DVC appends a stage to `dvc.lock` when it is done, and where stages run side by side that order is accidental;
`order_new_stages` leaves the bytes that `dvc repro` alone would leave.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML

from pipelines import TELEMETRY_OFF, FlowError
from pipelines.documents import DocumentError, load_commented, one_line, parse_json, read_yaml

LOCK = "dvc.lock"
STAGE_SETTINGS = {**TELEMETRY_OFF, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
Cores = int | Literal["all"] | None


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
        content = read_yaml(workspace / "params.yaml")
    except (OSError, DocumentError):
        return {}
    return content if isinstance(content, dict) else {}


def describe_workspace(workspace: Path) -> str:
    """Return `studio + street, studio_pool → baseline, vas, das`: anchor, pools, recipes; else the folder's name."""
    params = read_params(workspace)
    named = (params.get(key) for key in ("pools", "recipes"))
    pools, recipes = (", ".join(map(str, names)) if isinstance(names, list | dict) else "" for names in named)
    data = " + ".join(filter(None, [str(params.get("anchor") or ""), pools]))
    return one_line(" → ".join(filter(None, [data, recipes])) if data else workspace.name, 200)


def read_locked_stages(path: Path) -> list[str]:
    """Return the stages of a dvc.lock in its order; none where there is no file, FlowError for a damaged one."""
    try:
        content = read_yaml(path) if path.exists() else None
        if not isinstance(stages := (content or {}).get("stages") or {}, dict):
            raise DocumentError(f"its stages are a {type(stages).__name__}")
    except (OSError, DocumentError, AttributeError) as error:
        raise FlowError(
            f"{path} is broken: {one_line(error, 200)}; restore it from git: git checkout -- {LOCK}"
        ) from None
    return list(map(str, stages))


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
    text = path.read_text(encoding="utf-8")
    content = load_commented(text, YAML(typ="safe"))
    yaml_file.dump(content, same)
    content["stages"] = {name: content["stages"][name] for name in ordered}
    yaml_file.dump(content, changed)
    if is_dvcs := same.getvalue() == text:
        replace_text(path, changed.getvalue())
    return is_dvcs


def replace_text(path: Path, text: str) -> None:
    """Write a text beside a file and put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Needs(NamedTuple):
    """What the `meta` of a stage in dvc.yaml says that it needs.

    `gpu`: it holds a GPU while it runs. `cores`: so many of the core budget, `all` of it, or (None) a fair share.
    `timeout`: hours after which it is ended.
    """

    gpu: bool = False
    cores: Cores = None
    timeout: float | None = None


class Stage(NamedTuple):
    """One stage of the graph; `upstream` are the addresses of the stages whose outputs it reads."""

    address: str  # align@studio
    description: str = ""
    upstream: tuple[str, ...] = ()
    needs: Needs = Needs()
    stale: bool = True


def read_graph(workspace: Path, targets: Sequence[str] | None = None, *, force: bool = False) -> dict[str, Stage]:
    """Return the stages of a workspace by address, upstream before downstream.

    With `targets` (addresses, names of groups, outputs), only those and what they need. `force` takes all for stale.
    Raises FlowError for a folder without DVC, an unknown target or a dvc.yaml that DVC refuses.
    """
    return {
        address: Stage(address, stage["description"], tuple(stage["upstream"]), read_needs(address, stage["meta"]),
                       stage["stale"])
        for address, stage in _ask_dvc(workspace, targets, force=force)["stages"].items()
    }  # fmt: skip


def list_raw_inputs(workspace: Path) -> list[str]:
    """Return the paths below a workspace that its stages read and that no stage or .dvc file of it makes."""
    return _ask_dvc(workspace, None, force=True)["raw"]  # forced: then nothing is hashed


def read_needs(address: str, meta: Any) -> Needs:
    """Return the needs in a stage's `meta`; the rest is the user's own. FlowError for a value that means nothing."""
    if not isinstance(meta, Mapping):
        return Needs()
    gpu, cores, timeout = meta.get("gpu", False), meta.get("cores"), meta.get("timeout")
    if not isinstance(gpu, bool):
        raise FlowError(f"{address}: meta.gpu is {gpu!r}; it is true or false")
    if not (cores is None or cores == "all" or (type(cores) is int and cores >= 1)):
        raise FlowError(f"{address}: meta.cores is {cores!r}; it is a number of cores from 1, or all")
    if not (timeout is None or (type(timeout) in (int, float) and timeout > 0)):
        raise FlowError(f"{address}: meta.timeout is {timeout!r}; it is a number of hours above 0")
    return Needs(gpu, cores, timeout)


def _ask_dvc(workspace: Path, targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """Return what `dvc_reader.py` prints in a workspace."""
    if not workspace.is_dir():
        raise FlowError(f"{workspace} is no folder; name the workspace that holds dvc.yaml")
    # -I keeps a file of the workspace that is named like a module from being imported.
    command = [sys.executable, "-I", str(Path(__file__).with_name("dvc_reader.py"))]
    request = json.dumps({"targets": list(targets) if targets else None, "force": force})
    done = subprocess.run(
        command, cwd=workspace, env=stage_environment(), input=request, capture_output=True, text=True, check=False
    )
    try:
        answer = parse_json(done.stdout.splitlines()[-1], finite=False)  # in which the meta of a stage may stand
    except (DocumentError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FlowError(f"DVC could not read the graph of {workspace}: {last}; try `dvc status` there") from None
    if "error" in answer:
        raise FlowError(f"{answer['error']} (workspace {workspace})")
    return answer


class Outcome(StrEnum):
    """How a stage ended; the names that a person sees."""

    CACHED = "Cached"  # up to date, nothing was done
    RUN_CACHE = "RunCache"  # restored: DVC remembers a run with the same inputs
    COMPLETED = "Completed"
    FAILED = "Failed"
    SKIPPED = "Skipped"  # something upstream failed
    CANCELLED = "Cancelled"


UNSUCCESSFUL = {Outcome.FAILED, Outcome.SKIPPED, Outcome.CANCELLED}


class Start(NamedTuple):
    """A stage that starts now: with cores and GPU to run, or with the reason why it does not run."""

    stage: Stage
    outcome: Outcome | None = None  # known beforehand: CACHED or SKIPPED; None: it runs
    reason: str = ""
    cores: tuple[int, ...] = ()
    gpu: str | None = None


class Scheduler:
    """The state of one run over a graph; `outcomes` are those of the stages that have ended.

    `cores`: the numbers of the cores to spread over. `gpus`: the names of the GPUs, each for one stage at a time; where
    there are none, stages that would use one share the cores as any other.
    """

    def __init__(self, stages: Mapping[str, Stage], *, cores: Sequence[int], gpus: Sequence[str] = ()) -> None:
        if not cores:
            raise ValueError("a scheduler needs at least one core")
        self.outcomes: dict[str, Outcome] = {}
        self._stages, self._starts = dict(stages), dict[str, Start]()
        self._budget, self._has_gpus = len(cores), bool(gpus)
        self._cores, self._gpus = list(cores), list(gpus)

    @property
    def done(self) -> bool:
        """Whether every stage has ended."""
        return len(self.outcomes) == len(self._stages)

    def start_ready(self) -> Iterator[Start]:
        """Yield the stages that start now; their cores and GPUs are taken until `finish` is called for them."""
        runs: list[Stage] = []
        for address in [address for address in self._stages if address not in self._starts]:
            stage = self._stages[address]
            upstream = {one: self.outcomes.get(one) for one in stage.upstream if one in self._stages}
            if None in upstream.values():
                continue
            if unsuccessful := [one for one, outcome in upstream.items() if outcome in UNSUCCESSFUL]:
                yield self._begin(Start(stage, Outcome.SKIPPED, self._explain(unsuccessful[0])))
            elif not stage.stale and set(upstream.values()) <= {Outcome.CACHED}:
                yield self._begin(Start(stage, Outcome.CACHED, "up to date"))
            else:
                runs.append(stage)
        for place, stage in enumerate(runs):
            gpu, wanted = self._has_gpus and stage.needs.gpu, stage.needs.cores
            if wanted is None:
                wanted = max(1, len(self._cores) // (len(runs) - place))
            count = self._budget if wanted == "all" else min(wanted, self._budget)
            if count <= len(self._cores) and not (gpu and not self._gpus):
                cores, self._cores = tuple(self._cores[:count]), self._cores[count:]
                yield self._begin(Start(stage, cores=cores, gpu=self._gpus.pop(0) if gpu else None))

    def finish(self, address: str, outcome: Outcome) -> None:
        """Note that a started stage has ended, and free what it held."""
        start = self._starts[address]
        self.outcomes[address] = outcome
        self._cores = sorted([*self._cores, *start.cores])
        self._gpus += [start.gpu] if start.gpu is not None else []

    def _begin(self, start: Start) -> Start:
        self._starts[start.stage.address] = start
        return start

    def _explain(self, address: str) -> str:
        """Say which stage failed where this one was not successful: it, or the one behind which it was skipped."""
        if self.outcomes[address] is Outcome.SKIPPED:
            return self._starts[address].reason
        return f"not run: {address} {'was cancelled' if self.outcomes[address] is Outcome.CANCELLED else 'failed'}"
