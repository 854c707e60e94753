"""Find a workspace, read its settings and its DVC graph, keep the order of its dvc.lock, decide which stages may start.

DVC is asked once for graph and staleness, since each `dvc` process costs more than a second of CPU. A stage starts when
all stages upstream of it have ended. One that is not stale and whose upstream stages were all up to date is up to date
itself and needs no process; one behind a failure is skipped; the others run where cores and a GPU are free.

DVC appends a stage to `dvc.lock` when it is done, and where stages run side by side that order is accidental;
`order_new_stages` leaves the bytes that `dvc repro` alone would leave.
"""

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

from platformdirs import site_config_dir, user_config_dir
from ruamel.yaml import YAML

from pipelines import TELEMETRY_OFF, FlowError
from pipelines.documents import DocumentError, load_commented, one_line, parse_json, read_yaml

LOCK, GRAPH = "dvc.lock", "dvc.yaml"
CHECK = ("fer_pipeline", "check", "--commands")  # with which the stages begin whose commands hold settings
TEMPORARY = Path("/var/tmp")  # where DVC's site cache lies by default, open to all
STAGE_SETTINGS = {**TELEMETRY_OFF, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
MOST_RETRIES = 10
Cores = int | Literal["all"] | None


def find_workspace(given: str | None = None) -> Path:
    """Return the folder of dvc.yaml: the given one, PIPELINES_WORKSPACE, or the working directory; else FlowError."""
    folder = Path(given or os.environ.get("PIPELINES_WORKSPACE") or ".").expanduser().resolve()
    for needed in ("dvc.yaml", ".dvc"):
        if not (folder / needed).exists():
            raise FlowError(f"{folder} has no {needed}; name the workspace or set PIPELINES_WORKSPACE")
    return folder


def stage_environment(workspace: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a stage: this process's own, telemetry off, `python` is the one that runs the flow."""
    binaries = str(Path(sys.executable).parent)
    paths = [path for path in os.environ.get("PATH", "").split(os.pathsep) if path and path != binaries]
    own = {"PATH": os.pathsep.join([binaries, *paths]), "DVC_SITE_CACHE_DIR": find_site_cache(workspace)}
    return {**os.environ, **STAGE_SETTINGS, **own, **(more or {})}


def find_site_cache(workspace: Path) -> str:
    """Return where DVC keeps what it remembers of hashes: as it is set for the workspace, else a private folder.

    DVC's own default is open to all users of the host, and what lies there it unpickles.
    """
    places = [os.environ.get("DVC_SITE_CACHE_DIR", "")]
    app = ("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or user_config_dir(*app)
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or site_config_dir(*app)
    for file in (
        workspace / ".dvc/config.local",
        workspace / ".dvc/config",
        Path(user, "config"),
        Path(system, "config"),
    ):
        with suppress(OSError):
            text = file.read_text(encoding="utf-8", errors="replace")
            places += re.findall(r"""^\s*site_cache_dir\s*=\s*["']?(.*?)["']?\s*$""", text, re.MULTILINE)
    return next(filter(None, places), None) or str(
        make_private_folder(TEMPORARY / f"dvc-{os.getuid()}", "DVC_SITE_CACHE_DIR")
    )


def make_private_folder(path: Path, variable: str) -> Path:
    """Make a folder that no other user may enter, where there is none; FlowError for one that is not private.

    `variable` is the one of the environment that names another place.
    """
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    except OSError as error:
        raise FlowError(f"{path} cannot be made ({error.strerror}); set {variable} to a folder of your own") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        cure = f"remove it, or set {variable} to a folder of your own"
        raise FlowError(f"{path} is no private folder: another user may have put something there; {cure}")
    return path


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


def list_changed_settings(workspace: Path) -> list[str]:
    """Return `mine.value 0.22 → 0.25` for every setting that differs from what dvc.lock has of it."""
    params, changes = read_params(workspace), dict[str, None]()
    for stage in read_stages(workspace / LOCK).values():
        for key, before in ((stage.get("params") or {}).get("params.yaml") or {}).items():
            now: Any = params
            for step in str(key).split("."):
                now = now.get(step) if isinstance(now, dict) else None
            changes |= dict.fromkeys(_compare(str(key), before, now))
    return list(changes)


def _compare(place: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _compare(f"{place}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{place} {shorten(str(before), 24, placeholder='…')} → {shorten(str(now), 24, placeholder='…')}"


def read_locked_stages(path: Path) -> list[str]:
    """Return the stages of a dvc.lock in its order; none where there is no file."""
    return list(read_stages(path))


def read_makers(path: Path) -> dict[str, str]:
    """Return the stage of each output in a dvc.lock by the output's path; none where there is no file."""
    stages = read_stages(path)
    try:
        return {str(out["path"]): address for address, stage in stages.items() for out in stage.get("outs") or ()}
    except (TypeError, LookupError) as error:
        raise _broken(path, repr(error)) from None


def read_stages(path: Path) -> dict[str, Any]:
    """Return what a dvc.lock records of its stages; nothing where there is no file, FlowError for a damaged one."""
    try:
        content = read_yaml(path) if path.exists() else None
        if not isinstance(stages := (content or {}).get("stages") or {}, dict):
            raise DocumentError(f"its stages are a {type(stages).__name__}")
    except (OSError, DocumentError, AttributeError) as error:
        raise _broken(path, error) from None
    return {str(address): stage if isinstance(stage, dict) else {} for address, stage in stages.items()}


def _broken(path: Path, fault: object) -> FlowError:
    return FlowError(f"{path} is broken: {one_line(fault, 200)}; restore it from git: git checkout -- {LOCK}")


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
    """Write a text beside a file and put it in its place; what a link leads to is replaced, and the link stays."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Needs(NamedTuple):
    """What the `meta` of a stage in dvc.yaml says that it needs.

    `gpu`: it holds a GPU while it runs. `cores`: so many of the core budget, `all` of it, or (None) a fair share.
    `timeout`: hours after which it is ended. `retries`: how often it is tried again where it fails, for a stage that
    fails for reasons outside of it, such as a network disk.
    """

    gpu: bool = False
    cores: Cores = None
    timeout: float | None = None
    retries: int = 0


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
    retries = meta.get("retries", 0)
    if not isinstance(gpu, bool):
        raise FlowError(f"{address}: meta.gpu is {gpu!r}; it is true or false")
    if not (cores is None or cores == "all" or (type(cores) is int and cores >= 1)):
        raise FlowError(f"{address}: meta.cores is {cores!r}; it is a number of cores from 1, or all")
    if not (timeout is None or (type(timeout) in (int, float) and timeout > 0)):
        raise FlowError(f"{address}: meta.timeout is {timeout!r}; it is a number of hours above 0")
    if type(retries) is not int or not 0 <= retries <= MOST_RETRIES:
        raise FlowError(f"{address}: meta.retries is {retries!r}; it is a number from 0 to {MOST_RETRIES}")
    return Needs(gpu, cores, timeout, retries)


def _ask_dvc(workspace: Path, targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """Return what `dvc_reader.py` prints in a workspace."""
    if not workspace.is_dir():
        raise FlowError(f"{workspace} is no folder; name the workspace that holds dvc.yaml")
    check_settings(workspace)
    # -I keeps a file of the workspace that is named like a module from being imported.
    command = [sys.executable, "-I", str(Path(__file__).with_name("dvc_reader.py"))]
    request = json.dumps({"targets": list(targets) if targets else None, "force": force})
    done = subprocess.run(
        command,
        cwd=workspace,
        env=stage_environment(workspace),
        input=request,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = parse_json(done.stdout.splitlines()[-1], finite=False)  # in which the meta of a stage may stand
    except (DocumentError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FlowError(f"DVC could not read the graph of {workspace}: {last}; try `dvc status` there") from None
    if "error" in answer:
        raise FlowError(f"{answer['error']} (workspace {workspace})")
    return answer


def check_settings(workspace: Path) -> None:
    """Refuse settings that a shell would read as code, with the check that stands before the commands of the stages."""
    graph = workspace / GRAPH
    if graph.is_file() and " ".join(CHECK) in graph.read_text(encoding="utf-8", errors="replace"):
        command, environment = [sys.executable, "-m", *CHECK], stage_environment(workspace)
        done = subprocess.run(command, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise FlowError(f"{last.removeprefix('error: ')} (workspace {workspace})")


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

    def list_expected(self) -> list[str]:
        """Return the stages that may run: the stale ones, and all that stand on them."""
        expected: dict[str, None] = {}
        for address, stage in self._stages.items():  # upstream comes first
            if stage.stale or expected.keys() & set(stage.upstream):
                expected[address] = None
        return list(expected)

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
            return self._starts[address].reason or "not run: the run was ended"
        return f"not run: {address} {'was cancelled' if self.outcomes[address] is Outcome.CANCELLED else 'failed'}"
