"""The graph and what is stale in it: real DVC workspaces; the truth is what DVC itself runs, reports and skips."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipelines import FlowError, dvc_reader
from pipelines.workspace import Needs, Outcome, Scheduler, Stage, read_graph, read_needs

NewRepository = Callable[..., Path]
# Stages that stand downstream first, a group, fan-in by folder, needs of every kind, a stage that always runs, a frozen
# one between two others, one in a subfolder, one that reads added data.
WORLD = """
stages:
  last: {cmd: cat held.txt > last.txt; echo last >> order, deps: [held.txt], outs: [last.txt]}
  held:
    cmd: cat join.txt > held.txt; echo held >> order
    deps: [join.txt]
    outs: [held.txt]
  join:
    cmd: cat out/*.txt > join.txt; echo join >> order
    deps: [out]
    outs: [join.txt]
    meta: {cores: all, timeout: 1.5, since: 2026-01-01, owner: me}
  align:
    foreach: [studio, street]
    do:
      cmd: mkdir -p out; cat raw/${item}.txt > out/${item}.txt; echo align@${item} >> order
      desc: faces of ${item}
      deps: ["raw/${item}.txt"]
      outs: ["out/${item}.txt"]
      meta: {gpu: true}
  always: {cmd: date +%N > now.txt; echo always >> order, outs: [now.txt], always_changed: true, meta: a word}
  count: {cmd: wc -c < added.txt > count.txt; echo count >> order, deps: [added.txt], outs: [count.txt]}
"""
SUB = """
stages:
  x:
    cmd: cat ../join.txt > x.txt; echo sub/dvc.yaml:x >> ../order
    deps: [../join.txt]
    outs: [x.txt]
"""
FILES = {
    "dvc.yaml": WORLD,
    "sub/dvc.yaml": SUB,
    "raw/studio.txt": "1\n",
    "raw/street.txt": "2\n",
    "json.py": "raise SystemExit('a file of the workspace was imported')",
    ".gitignore": "*.txt\norder\n",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, new_repository: NewRepository) -> Path:
    """A workspace in which everything was reproduced by DVC, once; `order` tells in which order."""
    folder = new_repository(tmp_path_factory.mktemp("graph") / "a world", FILES)
    (folder / "added.txt").write_text("added\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo() as repo:
            repo.add("added.txt")
            repo.reproduce(all_pipelines=True)
    (folder / "first").write_text((folder / "order").read_text())
    return folder


def read(folder: Path, targets: Sequence[str] | None = None, *, force: bool = False) -> dict[str, Any]:
    """What the reader tells, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return dvc_reader.read(targets, force=force)


def addresses(told: dict[str, Any]) -> list[str]:
    return list(told["stages"])


def stale(told: dict[str, Any]) -> set[str]:
    return {address for address, stage in told["stages"].items() if stage["stale"]}


def as_stages(told: dict[str, Any]) -> dict[str, Stage]:
    return {
        address: Stage(address, upstream=tuple(stage["upstream"]), stale=stage["stale"])
        for address, stage in told["stages"].items()
    }


def status(folder: Path) -> set[str]:
    """What DVC's own status names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo() as repo:
            return set(repo.status())


def run_order(scheduler: Scheduler) -> list[str]:
    """The order in which a scheduler runs its stages if all of them do something."""
    order = []
    while not scheduler.done:
        for start in list(scheduler.start_ready()):
            order += [start.stage.address] if start.outcome is None else []
            scheduler.finish(start.stage.address, start.outcome or Outcome.COMPLETED)
    return order


def test_the_graph_is_dvcs(world: Path) -> None:
    stages = read_graph(world, force=True)
    assert {address: set(stage.upstream) for address, stage in stages.items()} == {
        "added.txt.dvc": set(),
        "align@studio": set(),
        "align@street": set(),
        "always": set(),
        "count": {"added.txt.dvc"},
        "join": {"align@studio", "align@street"},
        "held": {"join"},
        "last": {"held"},
        "sub/dvc.yaml:x": {"join"},
    }
    assert all(stage.stale for stage in stages.values())
    assert stages["align@street"].description == "faces of street"
    assert stages["align@street"].needs == Needs(gpu=True)
    assert stages["join"].needs == Needs(cores="all", timeout=1.5)
    assert stages["always"].needs == Needs()


def test_on_one_core_stages_run_in_the_order_of_dvc(world: Path) -> None:
    ours = run_order(Scheduler(as_stages(read(world, force=True)), cores=[0]))
    assert [address for address in ours if address != "added.txt.dvc"] == (world / "first").read_text().split()


def test_what_is_stale_is_what_dvc_runs(world: Path) -> None:
    assert stale(read(world)) == {"always"} == status(world)
    (world / "raw" / "street.txt").write_text("3\n")
    (world / "out" / "studio.txt").unlink()
    (world / "added.txt").write_text("more\n")
    told = read(world)
    assert stale(told) == {"align@street", "align@studio", "added.txt.dvc", "count", "always", "join"} == status(world)
    ours = run_order(Scheduler(as_stages(told), cores=[0]))
    (world / "order").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        with Repo() as repo:
            repo.reproduce(all_pipelines=True)
    theirs = set((world / "order").read_text().split())
    assert theirs <= set(ours)  # what is restored or verified writes no line
    assert {"align@street", "join", "held", "last", "count"} <= theirs
    assert stale(read(world)) == {"always"}


def test_targets_bring_what_they_need(world: Path) -> None:
    assert set(addresses(read(world, ["align"]))) == {"align@studio", "align@street"}
    assert addresses(read(world, ["align@street"])) == ["align@street"]
    assert set(addresses(read(world, ["join.txt", "count"]))) == {
        "added.txt.dvc", "count", "align@studio", "align@street", "join",
    }  # fmt: skip
    assert addresses(read(world, ["sub/dvc.yaml:x"]))[-1] == "sub/dvc.yaml:x"
    assert addresses(read(world, ["sub/x.txt"])) == addresses(read(world, ["sub/dvc.yaml"]))
    assert addresses(read(world, ["added.txt.dvc"])) == ["added.txt.dvc"]
    (world / "sub" / "none").mkdir()
    (world / "sub" / "none" / "dvc.yaml").touch()
    assert addresses(read(world, ["sub/none/dvc.yaml"])) == []


def test_a_frozen_stage_waits_for_nothing(world: Path) -> None:
    plain = world / "dvc.yaml"
    plain.write_text(WORLD.replace("  held:\n", "  held:\n    frozen: true\n"))
    try:
        stages = read(world, ["last"])["stages"]
        assert {address: stage["upstream"] for address, stage in stages.items()} == {"held": [], "last": ["held"]}
        (world / "raw" / "studio.txt").write_text("4\n")
        assert "held" not in stale(read(world))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(world)
            with Repo() as repo:
                assert repo.reproduce("last") == []  # nor does DVC run anything for it
    finally:
        plain.write_text(WORLD)
        (world / "raw" / "studio.txt").write_text("1\n")


def test_raw_data_is_what_no_stage_makes(world: Path) -> None:
    assert read(world)["raw"] == ["raw/street.txt", "raw/studio.txt"]


def test_an_import_is_not_stale_for_news_at_its_source(tmp_path: Path, new_repository: NewRepository) -> None:
    source = new_repository(tmp_path / "source", {"data.csv": "old\n"})
    here = new_repository(tmp_path / "here", {"dvc.yaml": "stages: {}\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        with Repo() as repo:
            repo.imp(str(source), "data.csv")
            (source / "data.csv").write_text("new\n")
            subprocess.run(["git", "commit", "--quiet", "--all", "-m", "news"], cwd=source, check=True)
            assert "data.csv.dvc" in repo.status()  # which `dvc update` brings, and no run of a stage
            assert repo.reproduce("data.csv.dvc") == []
    assert stale(read(here)) == set()


@pytest.mark.parametrize("target", ["aligm", "align@nowhere", "nothing.txt", "../elsewhere", "-x"])
def test_an_unknown_target_is_told_by_name(world: Path, target: str) -> None:
    error = read(world, ["join", target])["error"]
    assert repr(target) in error
    assert "\n" not in error
    assert ("did you mean align" in error) == target.startswith("al")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("stages: [", "dvc.yaml"),
        ("stages: {a: {outs: [x]}}", "dvc.yaml"),
        ("stages: {a: {cmd: x, outs: [x]}, b: {cmd: x, outs: [x]}}", "x"),
        (
            "stages: {a: {cmd: x, deps: [y], outs: [x]}, b: {cmd: x, deps: [x], outs: [y]}}",
            "both a dependency and an output",
        ),
        ("stages: {a: {cmd: x, params: [p]}, 'b': {cmd: '${none}'}}", "none"),
    ],
)
def test_a_broken_graph_is_told_in_one_line(
    tmp_path: Path, new_repository: NewRepository, content: str, told: str
) -> None:
    error = read(new_repository(tmp_path, {"dvc.yaml": content}))["error"]
    assert told in error
    assert "\n" not in error


def test_a_workspace_without_stages_is_an_empty_graph(tmp_path: Path, new_repository: NewRepository) -> None:
    assert read(new_repository(tmp_path, {"dvc.yaml": ""})) == {"stages": {}, "raw": []}


def test_what_is_no_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match="is no folder"):
        read_graph(tmp_path / "nowhere")
    assert "not inside of a DVC repository" in read(tmp_path)["error"]
    broken = tmp_path / "python"
    broken.mkdir()
    (broken / ".dvc").mkdir()
    (broken / ".dvc" / "config").write_bytes(os.urandom(64).replace(b"[", b"]"))
    with pytest.raises(FlowError, match="python") as refused:
        read_graph(broken)
    assert "\n" not in str(refused.value)


def test_needs_are_read_strictly_and_the_rest_left_alone() -> None:
    assert read_needs("a", {"gpu": True, "cores": 3, "timeout": 2, "note": "mine"}) == Needs(True, 3, 2)
    assert read_needs("a", {"retries": 2}) == Needs(retries=2)
    for none in ({}, None, "words", 7, ["gpu"]):
        assert read_needs("a", none) == Needs()
    wrong: list[tuple[str, Any]] = [
        *(("gpu", one) for one in (1, "yes", None)),
        *(("cores", one) for one in (0, -1, 1.5, True, "two")),
        *(("retries", one) for one in (-1, True, 1.5, "2", 11)),
        *(("timeout", one) for one in (0, -1, True, "1h", float("nan"))),
    ]
    for key, value in wrong:
        with pytest.raises(FlowError, match=f"a: meta.{key} is {value!r}; it is"):
            read_needs("a", {key: value})
