"""The graph as DVC resolves it, read once, with the recipes of the full demo: it has every kind of source."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest


class Node(NamedTuple):
    """One stage of the resolved graph."""

    address: str
    stage: str
    cmd: str  # of the stage itself
    guards: tuple[str, ...]  # the commands before it
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str, ...]


@pytest.fixture(scope="session")
def graph(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, ...]:
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    nodes, folder = [], tmp_path_factory.mktemp("full")
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    shutil.copyfile(root / "dvc.yaml", folder / "dvc.yaml")
    shutil.copyfile(root / "profiles" / "demo_full.yaml", folder / "params.yaml")
    with Repo(str(folder)) as repo:
        for stage in repo.index.stages:
            *guards, command = stage.cmd if isinstance(stage.cmd, list) else [stage.cmd]
            deps = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
            nodes.append(
                Node(
                    address=stage.name,
                    stage=stage.name.partition("@")[0],
                    cmd=command,
                    guards=tuple(guards),
                    deps=tuple(dep.def_path for dep in deps),
                    outs=tuple(out.def_path for out in stage.outs),
                    params=tuple(key for dep in stage.params for key in dep.params),
                )
            )
    return tuple(nodes)
