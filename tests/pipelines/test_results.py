"""Figures of a workspace and of a revision: real metrics in DVC's cache; differences by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from pipelines.artifacts import MINED_FACES, Change, Results, compare_results, read_results, read_results_at
from pipelines.repository import run_git

NewRepository = Callable[..., Path]
GRAPH = """
stages:
  mine: {cmd: mkdir -p data/mined; cp mined.json data/mined/summary.json, deps: [mined.json], outs: [data/mined]}
  evaluate:
    cmd: mkdir -p reports/metrics/vas; cp figures.json reports/metrics/vas/street.json
    deps: [figures.json]
    metrics: [reports/metrics/vas/street.json]
metrics: [other.json]
"""
FIGURES = {"accuracy": 0.12345678901234567, "n": 40, "none": None, "word": "x", "by_class": {"joy": 0.5}, "fine": True}
MINED = {
    "kept": 7,
    "passed": 9,
    "margins": {"joy": 0.25, "fear": None},
    "by_class": {"joy": {"kept": 4, "precision": 0.5}, "fear": {"kept": 3}},
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, new_repository: NewRepository) -> Path:
    """A committed version, and newer figures in the workspace."""
    files = {
        "dvc.yaml": GRAPH, ".gitignore": "/reports\n/data\n", "other.json": '{"a": 1}',
        "figures.json": json.dumps(FIGURES), "mined.json": json.dumps(MINED),
    }  # fmt: skip
    folder = new_repository(tmp_path_factory.mktemp("results"), files)
    newer = {
        "figures.json": json.dumps(FIGURES | {"accuracy": 0.5, "by_class": {"joy": 0.75}}),
        "mined.json": json.dumps(MINED | {"kept": 8, "by_class": {"joy": {"kept": 5}, "fear": {"kept": 3}}}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo() as repo:
            repo.reproduce()
        run_git(folder, "add", "--all")
        run_git(folder, "commit", "--quiet", "-m", "version")
        for path, text in newer.items():
            (folder / path).write_text(text)
        (folder / "other.json").write_text('{"a": 2}')
        with Repo() as repo:
            repo.reproduce()
    return folder


def test_the_figures_of_a_revision_beside_those_of_now(workspace: Path) -> None:
    now, then = read_results(workspace), read_results_at(workspace, "HEAD")
    street = ("vas", "street")
    assert now.metrics == {(*street, "accuracy"): 0.5, (*street, "n"): 40.0, (*street, "by_class.joy"): 0.75}
    assert then is not None
    assert then.mined == MINED
    assert then.metrics[*street, "accuracy"] == FIGURES["accuracy"]  # to the last digit
    assert compare_results(then, now) == [
        Change("mined joy: kept", 4.0, 5.0),
        Change("mined: kept", 7.0, 8.0),
        Change("vas on street: accuracy", 0.12345678901234567, 0.5),
        Change("vas on street: by_class.joy", 0.5, 0.75),
    ]


def test_a_revision_without_results_has_none(tmp_path: Path, new_repository: NewRepository) -> None:
    folder = new_repository(tmp_path, {"dvc.yaml": GRAPH, "figures.json": "{}", "mined.json": "{}"})
    assert read_results_at(folder, "HEAD") is None
    assert read_results(folder) == Results()


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ({"mine": "Cached", "evaluate": "RunCache"}, None),
        ({"mine": "Completed", "evaluate": "Completed", "other": "Failed"}, None),
        ({"mine": "Cached"}, "evaluate is not part of this run"),
        ({"mine": "Cached", "evaluate": "Skipped"}, "evaluate: Skipped"),
        ({"mine": "Cached", "evaluate": "Failed"}, "evaluate: Failed"),
    ],
)
def test_a_figure_that_the_run_did_not_bring_up_to_date_is_withheld(
    workspace: Path, outcomes: dict[str, str], reason: str | None
) -> None:
    then, found = read_results_at(workspace, "HEAD"), read_results(workspace, outcomes)
    assert then is not None
    if reason is None:
        assert found == read_results(workspace)
        return
    assert (found.metrics, found.withheld) == ({}, {("vas", "street"): reason})
    assert [change.what for change in compare_results(then, found)] == ["mined joy: kept", "mined: kept"]
    assert read_results(workspace, {}).withheld[MINED_FACES] == "mine is not part of this run"
    assert read_results(workspace, {}).mined == {}


def test_figures_that_a_failed_stage_has_removed_are_withheld_too(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_bytes((workspace / "dvc.lock").read_bytes())
    assert read_results(tmp_path, {"mine": "Failed"}).withheld == {
        ("vas", "street"): "evaluate is not part of this run"
    }
    other = tmp_path / "reports/metrics/by/hand.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"accuracy": 0.5}')
    assert read_results(tmp_path, {"evaluate": "Cached"}).withheld == {("by", "hand"): "no stage in dvc.lock makes it"}
    assert read_results(tmp_path).metrics == {("by", "hand", "accuracy"): 0.5}


def test_changes_are_those_that_are_there_by_hand() -> None:
    before = Results({("a", "t", "acc"): 0.5, ("a", "t", "gone"): 1.0, ("a", "t", "same"): 2.0}, {"kept": 10})
    after = Results({("a", "t", "acc"): 0.25, ("a", "t", "new"): 3.0, ("a", "t", "same"): 2.0}, {"kept": 10})
    found = compare_results(before, after)
    assert found == [
        Change("a on t: acc", 0.5, 0.25),
        Change("a on t: gone", 1.0, None),
        Change("a on t: new", None, 3.0),
    ]
    assert [one.difference for one in found] == [-0.25, None, None]
    assert compare_results(after, after) == []


@pytest.mark.parametrize(
    "mined",
    [{}, {"kept": "many"}, {"kept": True}, {"by_class": [1]}, {"by_class": {"joy": 3}}, {"margins": 4},
     {"kept": float("nan")}, {"kept": 10**400}, {"margins": {"joy": float("inf")}}],
)  # fmt: skip
def test_what_is_no_figure_is_no_change(mined: dict[str, Any]) -> None:
    assert compare_results(Results(), Results({}, mined)) == []


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"accuracy": ', b"\xff", b"7", b'{"accuracy": "x"}', b"NaN"])
def test_half_a_file_of_figures_is_none(tmp_path: Path, content: bytes) -> None:
    for path in ("reports/metrics/vas/street.json", "data/mined/summary.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_bytes(content)
    assert read_results(tmp_path).metrics == {}
    assert compare_results(Results(), read_results(tmp_path)) == []
