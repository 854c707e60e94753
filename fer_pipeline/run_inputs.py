"""Notice that the settings, the code or the input files of a stage changed while it ran.

DVC records what it finds when a stage has ended. If something was edited in the meantime, `dvc.lock` would pair the new
hash with the result of the old content, and every later run would call it up to date. So a stage notes at its start
what it reads, compares at its end, and fails on a difference before DVC records anything.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fer_pipeline.artifacts.locked_stages import read_stages
from fer_pipeline.commands.check import GRAPH, CheckedSettings
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.fingerprints import PACKAGE, fingerprint, normalise
from fer_pipeline.core.settings import ProjectSettings, first_difference, load_params, validate, values_in
from fer_pipeline.health.recorded_settings import find_contradictions

LOCK = Path("dvc.lock")

# Options that name what is written, and those that name neither that nor an input.
OUTPUTS = {"out", "truth", "census", "timings", "metrics"}
OUTPUTS |= {"control", "second_rule", "true_labels", "reviewed", "labels"}
FOLDERS = {"store", "root"}


class RunInputs:
    """What one run of a stage reads, as it was at the start; `outputs` are the paths that it writes.

    Create it before the settings are read and the stage's module is imported.
    """

    def __init__(self, stage: str, params: Path, options: Mapping[str, Any]) -> None:
        self.stage, self.params = stage, params
        self._names = {value for value in options.values() if isinstance(value, str)}  # of the data set, recipe …
        written = OUTPUTS | {"contents"} if stage == "align" else OUTPUTS  # an input of `mine`
        replaced = sorted(written & options.keys()) if stage != "report" else ()  # that writes into a folder that stays
        self.outputs = [options[name] for name in replaced if options[name]]
        self._paths = [
            path for name, value in options.items() if name not in written | FOLDERS for path in values_in(value, Path)
        ]
        self._code = {path: path.read_bytes() for path in PACKAGE.rglob("*.py")}
        self._checked: CheckedSettings | None = None
        self._definition: dict[str, Any] = {}  # of the stage in dvc.yaml, which DVC reads before it starts a stage
        self._files: dict[Path, str] = {}

    def add_settings(self, checked: CheckedSettings) -> None:
        """Notes the settings that the stage runs with, and the state of the files that they and the options name."""
        self._checked, self._definition = checked, _definition(self.stage)
        self._paths += values_in(checked.configs[self.stage], Path)
        if self.stage == "distill" and (weights := checked.project.train_final.weights):  # theta_0 is the final one's
            self._paths += [Path(path) for path in [weights.get("path")] if path]
        if self.stage == "align":
            self._paths += [dataset.path for name, dataset in checked.project.datasets.items() if name in self._names]
        self._files = self._state_of_files()
        if "DVC_STAGE" in os.environ:  # what is run by hand may use what was made by hand
            self._require_recorded_settings()

    def _require_recorded_settings(self) -> None:
        """Refuses an input that another stage made with settings that were edited just before DVC looked at them."""
        makers = {
            stage: entry
            for stage, entry in read_stages(LOCK).items()
            for out in entry.get("outs") or ()
            if any(
                Path(out["path"]) in (path, *path.parents) or path in Path(out["path"]).parents for path in self._paths
            )
        }
        for stage, path, key, locked, recorded in find_contradictions(Path(), makers):
            raise DataError(
                f"{path} was made with {key} {recorded}, and {LOCK} says {locked}: it was edited as {stage} ended; "
                f"run: dvc repro --force --single-item {stage}, then this again"
            )

    def require_unchanged(self) -> None:
        """Raises a DataError that names the first difference between the start and now."""
        change = self._changed_files() or self._changed_code() or self._changed_settings()  # what takes long first
        if change:
            raise DataError(
                f"{change} while {self.stage} ran, so its result belongs to neither state and is not recorded; "
                "run it again (finished shards and models are kept)"
            )

    def _changed_settings(self) -> str | None:
        checked = self._checked
        assert checked is not None
        try:
            values = load_params(self.params)
            project = validate(ProjectSettings, values, where=str(self.params))
            config = validate(type(checked.configs[self.stage]), values.get(self.stage), where=str(self.params))
        except ConfigError as error:
            return f"{error}: it was edited"
        keys = _tracked_keys(self._definition)
        before, now = (
            # Last: of a section of which others know a part, the whole counts.
            {**_select(shared, keys, self._names), self.stage: settings.model_dump(mode="json")}
            for settings, shared in ((checked.configs[self.stage], checked.project), (config, project))
        )
        if (difference := first_difference(before, now)) is None:
            return None
        place, old, new = difference
        return f"{self.params}: {place} changed from {str(old)[:80]} to {str(new)[:80]}"

    def _changed_code(self) -> str | None:
        """Compares the loaded modules that DVC tracks; comments, docstrings and formatting make no difference."""
        tracked = [str(one) for one in self._definition.get("deps") or [PACKAGE.name]]
        patterns = [re.sub(r"\$\{[^}]*\}", "*", one) for one in tracked if one.startswith(PACKAGE.name)]
        for module in list(sys.modules.values()):
            path = Path(getattr(module, "__file__", None) or "")
            name = path.relative_to(PACKAGE.parent).as_posix() if path in self._code else ""
            if any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}/*") for pattern in patterns if name):
                now = path.read_bytes() if path.exists() else b""
                if now != self._code[path] and not _same_code(now, self._code[path]):
                    return f"{name} changed"
        return None

    def _changed_files(self) -> str | None:
        now = self._state_of_files()
        changed = [path for path in {**self._files, **now} if self._files.get(path) != now.get(path)]
        return f"{changed[-1]} changed" if changed else None  # the deepest of its kind

    def _state_of_files(self) -> dict[Path, str]:
        return {folder: state for path in self._paths for folder, state in _states(path)}


def _tracked_keys(definition: Mapping[str, Any]) -> list[str]:
    """Returns the keys of the settings that DVC records for a stage; without a graph, all that stages share."""
    shared = {*ProjectSettings.model_fields} - {"resources"}  # which change no result
    keys = definition.get("params") or sorted(shared)
    return [key for key in keys if isinstance(key, str) and key.partition(".")[0] in shared]


def _definition(stage: str) -> dict[str, Any]:
    """Returns what `dvc.yaml` says of a stage; nothing where there is no such file or stage."""
    definition = (load_params(GRAPH).get("stages") or {}).get(stage) or {} if GRAPH.exists() else {}
    return definition.get("do", definition)


def _select(project: ProjectSettings, keys: Iterable[str], names: Collection[str]) -> dict[str, Any]:
    """Returns the values at some keys; of `datasets.${key}` those that the run works on."""
    values, selected = project.model_dump(mode="json", exclude={"resources"}), {}
    for key in keys:
        section, _, entry = key.partition(".")
        value = values[section]
        selected[section] = {name: value[name] for name in value if name in names} if entry else value
    return selected


def _same_code(before: bytes, now: bytes) -> bool:
    try:
        return normalise(before) == normalise(now)
    except SyntaxError:
        return False


def _states(path: Path) -> Iterator[tuple[Path, str]]:
    """Yields a file and its state, or a folder and those below it, each with the states of the entries in it.

    A state is made of names, sizes and times: files are not read, since pools have terabytes.
    """
    if not path.is_dir():
        yield path, str(_stat(path))
    for folder, subfolders, files in os.walk(path):
        subfolders.sort()
        yield Path(folder), fingerprint([(name, _stat(Path(folder, name))) for name in sorted(files)], subfolders)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
