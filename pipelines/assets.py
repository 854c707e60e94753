"""Tell Prefect which outputs a stage made, as assets `dvc://<repository>/<path>`.

A self-hosted server keeps the events, on which automations may act; Prefect Cloud draws the lineage from them, too. The
events are those of `prefect.assets.materialize`, which wants the keys before a task begins; DVC's are known when it
ends. A stage that DVC found unchanged, or restored, made nothing and emits nothing.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from prefect.assets import Asset
from prefect.events import emit_event
from prefect.types.names import MAX_ASSET_KEY_LENGTH
from pyarrow import dataset

from pipelines import FlowError
from pipelines.repository import run_git
from pipelines.workspace import LOCK, read_stages

MATERIALIZED = "prefect.asset.materialization.succeeded"
FORMATS = {".parquet": "parquet", ".arrow": "ipc"}
NOT_IN_KEYS = re.compile(r"[^\w./@:+=,~-]+", re.ASCII)  # Prefect takes neither spaces nor percent signs


class Repository(NamedTuple):
    """What an asset is named after, the commit that was worked on (nothing without git), and the workspace within."""

    name: str
    revision: str | None
    inside: str  # ends with a slash, or is empty

    def key(self, path: str) -> str:
        name = NOT_IN_KEYS.sub("_", f"{self.name}/{self.inside}{path}")
        return Asset(key=f"dvc://{name}"[:MAX_ASSET_KEY_LENGTH]).key


def read_hashes(workspace: Path) -> dict[str, str]:
    """Return the hash of every output that dvc.lock names, by its path."""
    return _hashes(read_stages(workspace / LOCK))


def emit_outputs(workspace: Path, address: str, before: Mapping[str, str]) -> None:
    """Emit an event for each output of a stage that has run; `before` has the hashes from before it ran.

    An event says `dvc.changed` in its resource, for automations to match, and in its payload md5, size in bytes, number
    of files, rows of its tables, revision, and a hash of the settings that the stage depends on.
    """
    stages, repository = read_stages(workspace / LOCK), find(workspace)
    stage, outputs = stages.get(address, {}), _hashes(stages)
    settings = json.dumps(stage.get("params") or {}, sort_keys=True, default=str)
    used = sorted({path for dep in stage.get("deps") or () for path in _outputs_at(str(dep["path"]), outputs)})
    related = [{"prefect.resource.id": repository.key(path), "prefect.resource.role": "asset"} for path in used]
    related.append({"prefect.resource.id": "dvc", "prefect.resource.role": "asset-materialized-by"})
    for out in stage.get("outs") or ():
        path, md5 = str(out["path"]), str(out.get("md5"))
        emit_event(
            event=MATERIALIZED,
            resource={
                "prefect.resource.id": repository.key(path),
                "prefect.resource.name": path,
                "dvc.stage": address,
                "dvc.changed": str(before.get(path) != md5).lower(),
            },
            related=related,
            payload={
                "md5": md5,
                "size": out.get("size"),
                "files": out.get("nfiles", 1),
                "rows": count_rows(workspace / path),
                "revision": repository.revision,
                "params": hashlib.sha256(settings.encode()).hexdigest(),
            },
        )


def find(workspace: Path) -> Repository:
    """Find the repository of a workspace: named after its remote `origin`, or else after its folder."""
    try:
        folder = Path(run_git(workspace, "rev-parse", "--path-format=absolute", "--git-common-dir"))
    except FlowError:
        return Repository(workspace.name, None, "")
    origin = run_git(workspace, "config", "--get", "remote.origin.url", check=False)
    name = re.split(r"[/:]", origin.rstrip("/"))[-1].removesuffix(".git") or folder.parent.name
    revision = run_git(workspace, "rev-parse", "--verify", "--quiet", "HEAD", check=False)
    return Repository(name, revision or None, run_git(workspace, "rev-parse", "--show-prefix"))


def count_rows(output: Path) -> dict[str, int]:
    """Count the rows of an output's tables from their metadata, shards of one folder as one; nothing of other files."""
    tables: dict[tuple[str, str], list[str]] = {}
    for path in [output] if output.is_file() else sorted(output.rglob("*")):
        if path.suffix in FORMATS and path.is_file():
            name = path.name if path == output else path.relative_to(output).as_posix()
            tables.setdefault((re.sub(r"part-\d+", "part-*", name), path.suffix), []).append(str(path))
    rows = dict[str, int]()
    for (name, suffix), paths in tables.items():
        try:
            rows[name] = dataset.dataset(paths, format=FORMATS[suffix]).count_rows()
        except (pa.ArrowException, OSError):  # whoever reads the file says what is wrong with it
            continue
    return rows


def _hashes(stages: Mapping[str, Any]) -> dict[str, str]:
    return {str(out["path"]): str(out.get("md5")) for stage in stages.values() for out in stage.get("outs") or ()}


def _outputs_at(path: str, outputs: Iterable[str]) -> Iterator[str]:
    """Yields the outputs that are a path, hold it, or lie in it."""
    for made in outputs:
        if f"{path}/".startswith(f"{made}/") or f"{made}/".startswith(f"{path}/"):
            yield made
