"""Print the graph of a DVC workspace, what is stale and what raw data is read, as one line of JSON.

The only file here that imports DVC. It is run as a process of its own, so that a flow, whose threads live long, shares
no DVC state, and since DVC names stages as seen from the working directory. Reads `{"targets": […] or null, "force":
bool}` from the standard input.
"""

import difflib
import json
import sys
from collections.abc import Sequence
from typing import Any


def read(targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """Return `{"stages": {address: …}, "raw": […]}`, stages in the order of `dvc repro`, or `{"error": one line}`.

    `raw`: the paths below the workspace that stages read and no stage makes, of all stages.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    try:
        with Repo(_wait_for_lock=True) as repo:
            graph = get_active_graph(repo.index.graph)  # a frozen stage waits for nothing
            order = plan_repro(graph)
            if targets:
                wanted = set().union(*(_resolve(repo, target) for target in targets))
                steps = [stage for stage in repo.index.stages if stage.addressing in wanted]
                order = plan_repro(graph, steps) if steps else []  # it takes none for all
            with repo.lock:
                stages = {
                    stage.addressing: {
                        "description": stage.desc or "",
                        "upstream": sorted(one.addressing for one in graph.successors(stage)),
                        "meta": stage.meta or {},
                        "stale": force or bool(stage.status()),
                    }
                    for stage in order
                }
            return {"stages": stages, "raw": _find_raw_inputs(repo)}
    except DvcException as error:
        lines = (line.strip() for line in str(error).splitlines())
        return {"error": next(filter(None, lines), type(error).__name__)}


def _resolve(repo: Any, target: str) -> set[str]:
    """Return the addresses that a target stands for: a stage, all stages of a group, the maker of an output."""
    from dvc.exceptions import DvcException, OutputNotFoundError

    addresses = [stage.addressing for stage in repo.index.stages]
    if group := {address for address in addresses if address.partition("@")[0] == target}:
        return group
    try:
        try:
            return {out.stage.addressing for out in repo.find_outs_by_path(target)}
        except OutputNotFoundError:
            return {stage.addressing for stage in repo.stage.collect(target)}
    except DvcException:
        names = [*addresses, *(address.partition("@")[0] for address in addresses)]
        near = dict.fromkeys(difflib.get_close_matches(target, names, n=3))
        hint = f"did you mean {' or '.join(near)}?" if near else "`dvc stage list` shows them"
        raise DvcException(f"no stage, group or output is named {target!r}; {hint}") from None


def _find_raw_inputs(repo: Any) -> list[str]:
    from dvc.dependency.param import ParamsDependency

    outs, paths = repo.index.outs_trie, set()
    for dep in (dep for stage in repo.index.stages for dep in stage.deps):
        if dep.protocol != "local" or isinstance(dep, ParamsDependency) or not dep.is_in_repo:
            continue
        key = dep.fs.parts(dep.fs_path)
        if not (outs.shortest_prefix(key) or outs.has_subtrie(key)):
            paths.add(dep.fs.relpath(dep.fs_path, repo.root_dir))
    return sorted(paths)


if __name__ == "__main__":
    request = json.load(sys.stdin)
    sys.stdout.write(json.dumps(read(request["targets"], force=request["force"]), default=str) + "\n")
