"""List how a mined subset changed over commits and DVC experiments, and what the final models made of it.

A commit gets a row where its `dvc.lock` names other mined faces or other figures than the commit before; an experiment
always; the workspace where it differs from the newest commit.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from fer_pipeline.artifacts.mined import SUMMARY, read_summary
from fer_pipeline.artifacts.seed_folders import SEEDS
from fer_pipeline.core.errors import DataError
from fer_pipeline.core.files import read_json
from fer_pipeline.health.dvc_project import read_config
from fer_pipeline.inspection.compare import list_upstream
from fer_pipeline.inspection.revisions import (
    OBJECT,
    WORKSPACE,
    NotThereError,
    Revision,
    Stages,
    describe_commit,
    fetch_objects,
    list_commits,
    list_experiments,
    list_folder,
    object_path,
    open_revision,
    read_lock,
    resolve,
)
from fer_pipeline.inspection.tables import SUBSET

METRIC = "mean_class_accuracy"
METRIC_FILE = re.compile(r"reports/metrics/([^/]+)/([^/]+)\.json")
ENDS = ("precision", "low", "high")
LOGGED = pa.schema(
    [
        *((name, pa.string()) for name in ("date", "revision", "kind", "commit", "subject", "rule")),
        ("margins", pa.map_(pa.string(), pa.float64())),
        ("seed", pa.int64()),
        ("seeds", pa.string()),
        ("kept", pa.int64()),
        ("kept_by_class", pa.map_(pa.string(), pa.int64())),
        *((name, pa.float64()) for name in ENDS),
        ("model", pa.string()),
        *((name, pa.int64()) for name in ("drawn", "judged")),
        *((f"measured_{name}", pa.float64()) for name in ENDS),
        ("accuracies", pa.map_(pa.string(), pa.float64())),
        ("missing", pa.string()),
    ]
)


class _Version(NamedTuple):
    """One entry of the history."""

    date: str
    revision: str
    kind: str
    commit: str
    subject: str
    stages: Stages
    fault: str = ""


def log(root: Path, rev: str = "HEAD", *, seed: int | None = None) -> pa.Table:
    """Lists the history up to `rev`, the newest first, then the experiments by date.

    Columns: `date` (ISO 8601), `revision` (commit, or name of an experiment), `kind` (commit, experiment, workspace),
    `commit`, `subject`, `rule`, `margins` and `kept_by_class` (by class), `kept`, the estimated `precision` with `low`
    and `high`, the `model` that it was estimated by where that is not the labeller (`calibration`), the
    `measured_precision` of `judged` faces out of `drawn` ones, `measured_low` and `measured_high`, `accuracies` (mean
    class accuracy by "recipe on target", over all seeds) and `missing`: why something is null. Where each of several
    `seeds` ("7, 8") has a subset of its own, the row is of one `seed`: that which is asked for, else the first.
    """
    versions = [*_versions(root, rev)]
    if not versions:
        raise NotThereError(
            f"no revision up to {rev} has {SUBSET}, nor has an experiment; run: dvc repro mine, and commit"
        )
    fault = _fetch(root, versions)
    return pa.Table.from_pylist([_describe(root, version, fault, seed) for version in versions], schema=LOGGED)


def _fetch(root: Path, versions: Sequence[_Version]) -> str:
    """Fetches what the rows need, of all at once; returns what the remote says of what it lacks."""
    config, fault = read_config(root), ""
    wanted = {md5 for version in versions for md5 in (_state(version.stages) or {}).values()}
    for _ in range(2):  # the lists of folders, then the summaries that they name
        if missing := {md5 for md5 in wanted if OBJECT.fullmatch(md5) and not object_path(config.cache, md5).exists()}:
            fault = fetch_objects(root, missing) or fault
        folders = [md5 for md5 in wanted if md5.endswith(".dir") and object_path(config.cache, md5).exists()]
        listed = []
        for md5 in folders:
            with suppress(DataError):  # of a damaged list its own row says so
                listed += list_folder(config, md5).items()
        wanted = {md5 for name, md5 in listed if name.endswith((SUMMARY, SEEDS))}
    return fault


def _versions(root: Path, rev: str) -> Iterator[_Version]:
    entries = list_commits(root, resolve(root, rev))
    commits = [_read(root, date, commit[:7], "commit", commit, subject) for commit, date, subject in entries]
    if rev == "HEAD":
        commits.insert(0, _read(root, "", WORKSPACE, WORKSPACE, "", ""))
    states = [*map(_state, (one.stages for one in commits)), None]
    for one, state, older in zip(commits, states[:-1], states[1:], strict=True):
        if one.fault or (state is not None and state != older):
            yield one
    experiments = []
    for ref, name, commit in list_experiments(root):
        date, subject = describe_commit(root, commit)
        experiments.append(_read(root, date, name, "experiment", commit, subject or ref))
    for one in sorted(experiments, key=lambda one: one.date, reverse=True):
        if one.fault or _state(one.stages) is not None:
            yield one


def _read(root: Path, *about: str) -> _Version:
    """A version with what its lock says, or with the fault of that."""
    version = _Version(*about, stages={})
    try:
        return version._replace(stages=read_lock(root, version.commit, name=version.revision, only="mine|evaluate"))
    except DataError as error:
        return version._replace(fault=str(error))


def list_recipes(stages: Stages) -> list[str]:
    """Lists the recipes whose models depend on the mined faces."""
    finals = {name.partition("@")[2]: stage for name, stage in stages.items() if name.startswith("train_final@")}
    return [
        recipe
        for recipe, stage in finals.items()
        if any("mine" in list_upstream(stages, dep["path"]) for dep in stage.get("deps") or ())
    ]


def mean_accuracy(accuracies: Mapping[str, float], recipe: str) -> float | None:
    """Returns the mean over the targets that a recipe was measured on, each of equal weight; None for none."""
    values = [value for name, value in accuracies.items() if name.rpartition(" on ")[0] == recipe]
    return sum(values) / len(values) if values else None


def _state(stages: Stages) -> Mapping[str, str] | None:
    """What makes a row: the hashes of the subset and of the figures; None where there is no subset."""
    outs = {out["path"]: str(out.get("md5")) for stage in stages.values() for out in stage.get("outs") or ()}
    named = {path: md5 for path, md5 in outs.items() if path == SUBSET or METRIC_FILE.fullmatch(path)}
    return named if SUBSET in named else None


def _describe(root: Path, version: _Version, fault: str, seed: int | None) -> dict[str, Any]:
    """One row; what is neither in the cache nor in the remote is named in `missing`."""
    row: dict[str, Any] = {name: getattr(version, name) for name in ("date", "revision", "kind", "commit", "subject")}
    faults = [version.fault] if version.fault else []
    rev = version.commit or WORKSPACE
    with open_revision(root, rev, seed=seed, stages=version.stages, fetched=fault) as revision:
        try:
            summary = read_summary(revision.path(SUBSET, f"*{SUMMARY}"))
            expected = summary["precision"]
            row |= {"rule": summary.get("ranked_by", "margin"), "margins": summary["margins"], "kept": summary["kept"]}
            row["kept_by_class"] = {name: counts["kept"] for name, counts in summary["by_class"].items()}
            row |= {"precision": expected["estimate"], "low": expected["low"], "high": expected["high"]}
            row["model"] = summary.get("heldout", {}).get("model")
            measured = expected.get("measured") or {}
            row |= {key: measured.get(key) for key in ("drawn", "judged")}
            row |= {f"measured_{key}": measured.get(key) for key in ENDS}
        except DataError as error:
            faults.append(str(revision.reword(error)))
        if seeds := revision.nested.get(SUBSET):
            row |= {"seed": seeds[0] if seed is None else seed, "seeds": ", ".join(map(str, seeds))}
        row["accuracies"], metric_faults = _read_accuracies(revision)
        faults += metric_faults
    row["missing"] = "; ".join(faults[:1]) or None
    return row | {key: [*row[key].items()] for key in ("margins", "kept_by_class", "accuracies") if key in row}


def _read_accuracies(revision: Revision) -> tuple[dict[str, float], Sequence[str]]:
    figures, faults = {}, []
    for path in revision.outputs("reports/metrics"):
        if match := METRIC_FILE.fullmatch(path):
            try:
                value = read_json(revision.path(path)).get(METRIC)
                if isinstance(value, float | int):
                    figures[f"{match[1]} on {match[2]}"] = float(value)
            except (DataError, AttributeError) as error:
                faults.append(str(error))
    return figures, faults
