"""Settings: every fault is one line that names the place and the known keys."""

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import (
    DatasetSettings,
    ProjectSettings,
    Resources,
    Settings,
    first_difference,
    load_params,
    read_project,
    validate,
)
from fer_pipeline.stages import train_final


class Inner(Settings):
    depth: int = 3


class Outer(Settings):
    inner: Inner = Inner()
    rate: float = 0.1


RECIPE = {
    "strategy": "supervised",
    "sources": {"labelled": "data/faces/a/train"},
    "deps": ["data/faces/a/train"] * 3,
}


def world(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "classes": ["anger", "happiness"],
        "seeds": [0],
        "anchor": "a",
        "train": "a",
        "pools": ["p"],
        "targets": ["a"],
        "datasets": {"a": {"adapter": "csv", "path": "x"}, "p": {"adapter": "csv", "path": "y"}},
        "recipes": {"baseline": RECIPE},
    }
    return {**values, **changes}


def write(folder: Path, values: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_unknown_key_is_one_line_with_the_known_ones(tmp_path: Path) -> None:
    params = write(tmp_path, {"outer": {"inner": {"deep": 1}}})
    with pytest.raises(ConfigError) as caught:
        validate(Outer, load_params(params)["outer"], where=f"{params}, outer")
    assert str(caught.value) == f"{params}, outer: unknown key 'inner.deep'; known keys are depth"


def test_wrong_type_names_the_key_and_what_was_found(tmp_path: Path) -> None:
    params = write(tmp_path, {"outer": {"rate": "fast"}})
    with pytest.raises(ConfigError, match=r"outer: rate: .*number.*found 'fast'"):
        validate(Outer, load_params(params)["outer"], where=f"{params}, outer")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; run in the project's folder"):
        load_params(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": None},
        {"protocol": {"name": "k_fold", "fold": 1}},
        {"protocol": {"name": "k_fold", "fold": 2, "groups": "steps"}},
        {"options": {"part": "middle", "contempt": False}},
        {"classes": {"contempt": None}},
    ],
)
def test_a_pool_of_a_divided_set_is_divided_alike(change: dict[str, object]) -> None:
    """Else persons whom a fold tests would be learned from."""
    own = {"adapter": "ck_plus", "path": "x", "protocol": {"name": "k_fold", "fold": 2}, "options": {"last": 2}}
    pool = {**own, "options": {"last": 2, "part": "middle"}}
    read = ProjectSettings.model_validate
    assert read(world(datasets={"a": own, "p": pool})).datasets["p"].protocol
    assert read(world(datasets={"a": own, "p": {**pool, **change, "path": "y"}}))
    vary = r"vary both together: datasets.a.protocol.fold\+datasets.p.protocol.fold=1,2"
    with pytest.raises(ValueError, match=f"the pool p shows persons whom a fold of a tests; give datasets.p.*{vary}"):
        read(world(datasets={"a": own, "p": {**pool, **change}}))


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Inner().depth = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor": "b"}, r"anchor names the data set 'b', but datasets has \['a', 'p'\]"),
        ({"pools": ["p", "p"]}, "pools names 'p' twice"),
        ({"pools": ["a"]}, "cannot be its own pool"),
        ({"classes": ["anger"]}, "at least two"),
        ({"recipes": {"../x": RECIPE}}, "pattern"),
        ({"recipes": {"v.2": RECIPE}}, r"recipes has the name 'v\.2', in which DVC reads a dot .*, for example to v_2"),
    ],
)
def test_impossible_worlds_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_project(write(tmp_path, world(**changes)))
    assert "\n" not in str(caught.value)


def test_world_reads_what_was_written(tmp_path: Path) -> None:
    read = read_project(write(tmp_path, world()))
    assert isinstance(read, ProjectSettings)
    assert read.datasets["p"] == DatasetSettings(adapter="csv", path=Path("y"))


class Entry(Settings):
    inner: Inner | None = None


class Entries(Settings):
    entries: dict[str, Entry] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"entries": {"a": {"innr": {}}}}, "unknown key 'entries.a.innr'; known keys are inner"),
        ({"entries": {"a": {"inner": {"deep": 1}}}}, "unknown key 'entries.a.inner.deep'; known keys are depth"),
        ({"entrys": {}}, "unknown key 'entrys'; known keys are entries"),
    ],
)
def test_the_known_keys_of_an_entry_of_a_mapping_are_its_own(values: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Entries, values, where="here")
    assert str(caught.value) == f"here: {line}"


def test_the_known_keys_of_a_member_of_a_union_are_its_own() -> None:
    values = {"training": {"optimizer": {"name": "sgd", "momentun": 0.9}}}
    with pytest.raises(
        ConfigError, match=r"unknown key 'training\.optimizer\.sgd\.momentun'; known keys are .*momentum"
    ):
        validate(train_final.Config, values, where="train_final")


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            {"deps": None},
            r"deps must repeat the paths of the sources: deps: \[data/faces/a/train, data/faces/a/train",
        ),
        (
            {"sources": dict.fromkeys("abcd", "x")},
            "4 sources, a, b, c, d, but dvc.yaml names 3 dependencies of a",
        ),
        (
            {"sources": {"labelled": "data/faces/p/train"}, "deps": ["data/faces/p/train"] * 3},
            "train is 'a', but the",
        ),
        ({"sources": {"labelled": "data/faces/a/trian"}}, "is a trian split, data/faces/a/trian; name the train split"),
        ({"strategi": "x"}, "unknown key 'recipes.r.strategi'; known keys are deps, overrides, sources, strategy"),
    ],
)
def test_a_wrong_recipe_is_told_what_to_write(tmp_path: Path, recipe: dict[str, object], line: str) -> None:
    values = {key: value for key, value in {**RECIPE, **recipe}.items() if value is not None}
    with pytest.raises(ConfigError, match=line) as caught:
        read_project(write(tmp_path, world(recipes={"r": values})))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "b: {x: 1, a: {a: 1}, a: 2}\n", "- {a: 1, a: 1}\n"])
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"not valid YAML: the key 'a' is given twice, see line \d"):
        load_params(tmp_path / "params.yaml")


def test_anchors_are_read_but_not_in_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("one: &shared {a: 1}\ntwo: *shared\nthree: {<<: *shared, a: 2}\n", encoding="utf-8")
    assert load_params(params) == {"one": {"a": 1}, "two": {"a": 1}, "three": {"a": 2}}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "HEAD")
    with pytest.raises(ConfigError, match=r"line 2: \*shared repeats what &shared names, .* write the values out"):
        load_params(params)


def test_shipped_settings_share_nothing(root: Path) -> None:
    for path in (root / "params.yaml", root / "dvc.yaml", *(root / "profiles").glob("*.yaml")):
        events = list(yaml.parse(path.read_text(encoding="utf-8")))
        assert not [event for event in events if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)]


@pytest.mark.parametrize(
    ("before", "now", "all_keys", "common_keys"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None, None),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ("a.c", 2, 3), ("a.c", 2, 3)),
        ({"a": {"b": 1}}, {"a": {}}, ("a.b", 1, None), None),
        ({"a": {"b": None}}, {"a": {}}, ("a.b", None, None), None),  # null is a value: a label that is dropped
        ({}, {"a": 1}, ("a", None, 1), None),
        ({"a": None}, {"a": 1}, ("a", None, 1), None),
        ({"a": [1, 2]}, {"a": [2, 1]}, ("a", [1, 2], [2, 1]), ("a", [1, 2], [2, 1])),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}, {"b": 3}]}, ("a.1.b", 2, 3), ("a.1.b", 2, 3)),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 0}]}, ("a.0.c", None, 0), None),  # a default that a card has
        ({"a": []}, {"a": [{"b": 1}]}, ("a", [], [{"b": 1}]), ("a", [], [{"b": 1}])),
        ({"a": 1}, {"a": {"b": 1}}, ("a", 1, {"b": 1}), ("a", 1, {"b": 1})),
        ({"a": [{"b": 1}, {"c": None}]}, {"a": [{"b": 1}, {}]}, ("a.1.c", None, None), None),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}, ("a.0.b", 1, 2), ("a.0.b", 1, 2)),
    ],
)
def test_the_first_difference_of_settings(before: dict, now: dict, all_keys: object, common_keys: object) -> None:
    assert first_difference(before, now) == all_keys
    assert first_difference(before, now, common=True) == common_keys


def test_a_value_of_any_size_is_told_in_a_line(tmp_path: Path) -> None:
    for value in ("x" * 10**6, [["y" * 1000] * 50] * 50, {"z" * 10**6: 1}):
        with pytest.raises(ConfigError) as raised:
            read_project(write(tmp_path, world(seeds=value)))
        assert len(str(raised.value)) < 1000
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("text", ["a: 2026-13-45", f"a: {'9' * 5000}", "a: " + "[" * 10_000, "a: !!bool x", "a: 2__"])
def test_whatever_yaml_raises_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(f"{text}\n- b", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml is not valid YAML: .*; correct it$") as raised:
        load_params(tmp_path / "params.yaml")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_number_is_finite(tmp_path: Path, value: str) -> None:
    (tmp_path / "params.yaml").write_text(f"memory_gb: {value}", encoding="utf-8")
    with pytest.raises(ConfigError, match="memory_gb: Input should be a finite number"):
        validate(Resources, load_params(tmp_path / "params.yaml"), where="resources")


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        ({"protocol": {"name": "k_fold", "fold": 11}}, "there is no fold 11 of 10; name one from 1 to 10"),
        ({"protocol": {"name": "k_fold", "fold": 0}}, "greater than or equal to 1, found 0"),
        ({"protocol": {"name": "folds"}}, "'k_fold', 'leave_one_out', 'hold_out', 'published'"),
        (
            {"protocol": {"name": "hold_out", "groups": "steps"}},
            "unknown key 'protocol.hold_out.groups'; known keys are",
        ),
        ({"protocol": {"name": "k_fold"}, "split": "test"}, "both split and protocol k_fold say what is tested"),
        (
            {"protocol": {"name": "published", "folds": 5}, "options": {"fold": 2}},
            "both options.fold and protocol.fold name a fold",
        ),
    ],
)
def test_a_protocol_that_is_none_is_refused(dataset: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(DatasetSettings, {"adapter": "tfd", "path": "raw", **dataset}, where="datasets.x")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_published_fold_is_an_option_of_the_adapter() -> None:
    protocol = {"name": "published", "folds": 5, "fold": 3}
    values = {"adapter": "tfd", "path": "raw", "protocol": protocol, "options": {"part": "labelled"}}
    assert validate(DatasetSettings, values, where="x").adapter_options() == {"part": "labelled", "fold": 3}
