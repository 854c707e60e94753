"""Run in a DVC workspace: prints its graph, what is stale and what raw data is read, as one line of JSON.

The only file here that imports DVC. It is a process of its own, so that a flow, whose threads live long, shares no DVC
state, and since DVC names stages as seen from the working directory. Reads `{"targets": […] or null, "force": bool}` on
the standard input.
"""

import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def read(targets: Sequence[str] | None, *, force: bool) -> dict[str, Any]:
    """`{"stages": […], "raw": […]}`, stages in the order of `dvc repro`, or `{"error": one line}`.

    `raw`: the paths below the workspace that stages read and no stage makes, of all stages.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    try:
        with Repo(_wait_for_lock=True) as repo:
            stages = {stage.addressing: stage for stage in repo.index.stages}
            active = get_active_graph(repo.index.graph)  # a frozen stage waits for nothing
            graph = networkx.relabel_nodes(active, {stage: stage.addressing for stage in stages.values()})
            raw = _raw_inputs(repo)
            wanted = _wanted(repo, targets, stages)
            if wanted is not None:
                graph = graph.subgraph(wanted.union(*(networkx.descendants(graph, address) for address in wanted)))
            steps = None if wanted is None else [stages[address] for address in stages if address in wanted]
            walk = [] if steps == [] else plan_repro(active, steps)  # which takes none for all
            with repo.lock:
                stale = {address for address in graph if force or stages[address].status()}
    except DvcException as error:
        return {"error": _first_line(error)}
    return {
        "stages": [
            {
                "address": address,
                "description": stages[address].desc or "",
                "upstream": sorted(graph.successors(address)),
                "meta": stages[address].meta or {},
                "stale": address in stale,
            }
            for address in (stage.addressing for stage in walk)
        ],
        "raw": raw,
    }


def _wanted(repo: Any, targets: Sequence[str] | None, stages: Mapping[str, Any]) -> set[str] | None:
    """The addresses that stand for the targets: stages, all of a group, the maker of an output; None for all."""
    from dvc.exceptions import DvcException

    if not targets:
        return None
    found: set[str] = set()
    for target in targets:
        group = {address for address in stages if address.partition("@")[0] == target}
        try:
            found |= group or _named(repo, target)
        except DvcException:
            near = difflib.get_close_matches(target, [*stages, *(one.partition("@")[0] for one in stages)], n=3)
            known = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`dvc stage list` tells them"
            raise DvcException(f"no stage, group or output is named {target!r}; {known}") from None
    return found


def _named(repo: Any, target: str) -> set[str]:
    from dvc.exceptions import OutputNotFoundError

    try:
        return {out.stage.addressing for out in repo.find_outs_by_path(target)}
    except OutputNotFoundError:
        return {stage.addressing for stage in repo.stage.collect(target)}


def _raw_inputs(repo: Any) -> list[str]:
    from dvc.dependency.param import ParamsDependency

    outs, found = repo.index.outs_trie, set()
    for dep in (dep for stage in repo.index.stages for dep in stage.deps):
        if dep.protocol != "local" or isinstance(dep, ParamsDependency) or not dep.is_in_repo:
            continue
        key = dep.fs.parts(dep.fs_path)
        if not (outs.shortest_prefix(key) or outs.has_subtrie(key)):
            found.add(dep.fs.relpath(dep.fs_path, repo.root_dir))
    return sorted(found)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    wish = json.load(sys.stdin)
    sys.stdout.write(json.dumps(read(wish["targets"], force=wish["force"]), default=str) + "\n")
