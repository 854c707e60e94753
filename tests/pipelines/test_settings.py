"""Names of runs from params.yaml, and grids from the command line, whatever a person wrote there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.exceptions import InvalidArgumentError
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.repo.experiments.utils import check_ref_format
from dvc.scm import Git

from pipelines import FlowError
from pipelines.cleanup import fail_in_one_line
from pipelines.repository import check_experiment_name
from pipelines.sweep import name_trial, read_grid, set_params, sweep
from pipelines.workspace import describe_workspace, list_changed_settings, read_params


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ("{anchor: studio, pools: [street, pool], recipes: [vas, das]}", "studio + street, pool → vas, das"),
        ("{anchor: studio, pools: {street: {a: 1}}, recipes: {vas: {}}}", "studio + street → vas"),
        ("{pools: [a], recipes: []}", "a"),
        ("{anchor: 7}", "7"),
        ("{anchor: null}", "work"),
        ("{recipes: [vas]}", "work"),
        ("", "work"),
        ("[1, 2]", "work"),
        ("{anchor: [", "work"),
        ("day: 2026-13-45", "work"),
        ("anchor: \x00", "work"),
        ("!!python/object/apply:os.getcwd []", "work"),
    ],
)
def test_a_run_is_named_by_its_settings(tmp_path: Path, params: str, name: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "params.yaml").write_text(params)
    assert describe_workspace(tmp_path / "work") == name


def test_no_settings_are_none(tmp_path: Path) -> None:
    assert read_params(tmp_path) == {}
    (tmp_path / "params.yaml").write_bytes(b"anchor: \xff\xfe")
    assert read_params(tmp_path) == {}


LOCKED = """
stages:
  mine:
    params: {params.yaml: {mine: {by: margin, value: 0.22}, datasets.street: {path: data, split: null}, seeds: [1]}}
  report:
    params: {params.yaml: {seeds: [1], mine: {by: margin, value: 0.22}}}
  made: {cmd: x}
"""


@pytest.mark.parametrize(
    ("params", "changes"),
    [
        ("{mine: {by: margin, value: 0.22}, datasets: {street: {path: data, split: null}}, seeds: [1], other: 3}", []),
        ("{mine: {by: margin, value: 0.25}, datasets: {street: {path: data}}, seeds: [1]}", ["mine.value 0.22 → 0.25"]),
        (
            "{mine: {by: count, value: 0.22, cap: 9}, datasets: {street: {path: data}}, seeds: [1, 2]}",
            ["mine.by margin → count", "mine.cap None → 9", "seeds [1] → [1, 2]"],
        ),
        ("{mine: {by: margin, value: 0.22}, seeds: [1]}", ["datasets.street {'path': 'data',… → None"]),
    ],
)
def test_changed_settings_are_those_that_the_lock_has_otherwise(
    tmp_path: Path, params: str, changes: list[str]
) -> None:
    (tmp_path / "params.yaml").write_text(params)
    assert list_changed_settings(tmp_path) == []
    (tmp_path / "dvc.lock").write_text(LOCKED)
    assert sorted(list_changed_settings(tmp_path)) == changes


def test_the_projects_own_settings_have_a_name(root: Path) -> None:
    params = read_params(root)
    assert describe_workspace(root).startswith(f"{params['anchor']} + {next(iter(params['pools']))}")


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        (["mine.value=0.2,0.3"], {"mine.value": [0.2, 0.3]}),
        (["seeds=[0],[1, 2]", "train.head=null,true,x y"], {"seeds": [[0], [1, 2]], "train.head": [None, True, "x y"]}),
        ([" a = 1"], {"a": [1]}),
        ([], {}),
    ],
)
def test_a_grid_is_read_as_yaml(words: list[str], grid: dict[str, Any]) -> None:
    assert read_grid(words) == grid


@pytest.mark.parametrize(
    "words", [["mine.value"], ["=1"], ["a="], ["a=1", "a=2"], ["a=[1"], ["a=1]"], ["a=2026-13-45"], ["a=" + "[" * 5000]]
)
def test_what_is_no_setting_to_vary_is_told(words: list[str]) -> None:
    with pytest.raises(FlowError, match="is no setting to vary; say PATH=VALUE,VALUE"):
        read_grid(words)


@pytest.mark.parametrize("dotted", ["one.a", "two.a", "two.b", "three"])
def test_a_value_is_set_in_its_own_place_alone(dotted: str) -> None:
    content = yaml.safe_load(set_params("one: {a: 1} # first\ntwo: {a: 1, b: 2}\nthree: 3\n", {dotted: 7}))
    before = {"one.a": 1, "two.a": 1, "two.b": 2, "three": 3}
    after = {f"{name}.{key}": one for name in ("one", "two") for key, one in content[name].items()}
    assert {**after, "three": content["three"]} == {**before, dotted: 7}


def test_a_fold_may_be_varied_that_is_not_there() -> None:
    """It is 1 where it is left out; nothing else that is left out is a setting."""
    text = "datasets: {acted: {protocol: {name: k_fold, folds: 3}}}\nfold: 1\n"
    content = yaml.safe_load(set_params(text, {"datasets.acted.protocol.fold": 2}))
    assert content["datasets"]["acted"]["protocol"] == {"name": "k_fold", "folds": 3, "fold": 2}
    for wrong in ("datasets.acted.fold", "datasets.acted.protocol.seed", "datasets.other.protocol.fold"):
        with pytest.raises(FlowError, match=f"has no setting '{wrong}'"):
            set_params(text, {wrong: 2})


def test_two_settings_are_varied_together() -> None:
    [(path, values)] = read_grid(["one.a+two.a=7,8"]).items()
    content = yaml.safe_load(set_params("one: {a: 1}\ntwo: {a: 1, b: 2}\n", {path: values[0]}))
    assert content == {"one": {"a": 7}, "two": {"a": 7, "b": 2}}


def test_settings_that_share_a_value_are_not_varied() -> None:
    with pytest.raises(FlowError, match=r"line 2: \*shared repeats what &shared names; write the values out"):
        set_params("one: &shared {a: 1}\ntwo: *shared\n", {"one.a": 7})


def is_refused(call: Callable[[], object], error: type[Exception]) -> bool:
    try:
        call()
    except error:
        return True
    return False


NAMES = (
    "a",
    "ä.1_b-c",
    "a/b",
    "a..b",
    "a b",
    "x.lock",
    ".a",
    "a.",
    "",
    "a\nb",
    "a~1",
    "a:b",
    "@{1}",
    "a;touch canary",
    "$(x)",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_a_name_that_dvc_takes(tmp_path: Path, name: str, new_repository) -> None:
    """Before the hours of work after which DVC would refuse it."""
    scm = Git(str(new_repository(tmp_path / "work", {})))
    theirs = is_refused(lambda: check_ref_format(scm, ExpRefInfo("0" * 40, name)), InvalidArgumentError)
    assert is_refused(lambda: check_experiment_name(name), FlowError) == theirs or not name


@pytest.mark.parametrize(
    "value", ["../x", "x.lock", "a..b", "a/b", ".", "-", "", "ä b", "a\nb", "$(touch canary)", "a.lock.lock"]
)
def test_a_trial_has_a_name_that_can_be_an_experiments(value: str) -> None:
    name = name_trial({"a.b": value})
    check_experiment_name(name)
    assert name == name_trial({"a.b": value}) != name_trial({"a.b": f"{value}2"})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"prefix": "a/b-"}, "'a/b-x-1' is no name for an experiment; take letters, digits and - _ . alone"),
        (
            {"prefix": "two words "},
            "'two words x-1' is no name for an experiment; take letters, digits and - _ . alone",
        ),
        ({"rev": "--output=canary"}, "`git show --end-of-options` failed in "),
        ({"rev": "--ext-diff"}, "`git show --end-of-options` failed in "),
    ],
)
def test_a_sweep_refuses_names_and_revisions_in_one_line(
    tmp_path: Path, options: dict[str, str], line: str, new_repository
) -> None:
    folder = new_repository(tmp_path / "work", {"params.yaml": "x: 0\n", "dvc.yaml": "stages: {}\n"})
    state = sweep.fn(grid={"x": [1, 2]}, workspace=str(folder), **options)
    assert state.is_failed()
    assert state.message.startswith(line)
    assert "\n" not in state.message
    assert not [*folder.glob("canary*"), *tmp_path.glob("work@*")]


@pytest.mark.parametrize("value", ["[" * 5000, "2026-13-45", "9" * 5000, "!!python/name:os.system x", "0o9" * 2000])
def test_settings_that_cannot_be_read_are_one_line(value: str) -> None:
    with pytest.raises(FlowError, match=r"params\.yaml cannot be read: .*; correct it and commit$") as raised:
        set_params(f"a: {value}\na: 1\n", {"a": 7})
    assert len(str(raised.value)) < 300


def test_a_fault_is_one_plain_line_wherever_it_is_shown() -> None:
    """Also in the message of a failed state, and in a table, which take it as text."""
    assert str(FlowError("no\n  such \x1b[31mname")) == r"no such \x1b[31mname"
    state = fail_in_one_line(lambda: set_params("a: 1", {"b\n\x1b[31m": 2}))()
    assert state.message is not None
    assert state.message.isprintable()
    assert len(str(FlowError("x" * 10**6))) == 2000
