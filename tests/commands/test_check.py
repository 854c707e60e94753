"""All settings are checked before any work, and what was found good is remembered only for what was looked at."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fer_pipeline.commands import check, profile
from fer_pipeline.core.errors import ConfigError

REMEMBERED = "memory/checked"


@pytest.fixture
def params(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_bytes((root / "params.yaml").read_bytes())
    return path


def change(params: Path, section: str, **values: Any) -> None:
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    whole[section] = {**whole[section], **values}
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")


def test_a_stage_gets_its_own_settings(params: Path, tmp_path: Path) -> None:
    change(params, "mine", value=0.31)
    first = check.check_for("mine", params, remembered=tmp_path / REMEMBERED)
    again = check.check_for("mine", params, remembered=tmp_path / REMEMBERED)
    assert first.config.value == again.config.value == 0.31
    assert first.project == again.project


def test_a_fault_in_a_later_stage_is_told_by_an_earlier_one(params: Path, tmp_path: Path) -> None:
    check.check_for("align", params, remembered=tmp_path / REMEMBERED)
    change(params, "report", heading="x")
    with pytest.raises(ConfigError, match=r"report: unknown key 'heading'; known keys are .*title"):
        check.check_for("align", params, remembered=tmp_path / REMEMBERED)


def test_a_recipe_is_checked_to_its_bottom(params: Path) -> None:
    recipes = yaml.safe_load(params.read_text(encoding="utf-8"))["recipes"]
    wrong = {**recipes["vas"], "overrides": {"training": {"augment": {"flop": 1}}}}
    change(params, "recipes", vas=wrong)
    with pytest.raises(ConfigError, match=r"recipes\.vas.*training\.augment\.flop"):
        check.check(params)


def test_an_adapter_and_a_section_must_exist(params: Path) -> None:
    change(params, "datasets", film={"adapter": "tsv", "path": "x"})
    with pytest.raises(ConfigError, match=r"unknown datasets 'tsv'; choose one of csv"):
        check.check(params)
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    params.write_text(yaml.safe_dump({key: value for key, value in whole.items() if key != "score"}))
    with pytest.raises(ConfigError, match="the section 'score' is missing"):
        check.check(params)


def test_profiles_are_listed_and_put_in_place(root: Path, tmp_path: Path) -> None:
    folder, params = root / "profiles", tmp_path / "params.yaml"
    assert all(path.stem in profile.list_profiles(folder) for path in folder.glob("*.yaml"))
    profile.use_profile("photographs", params, force=False, folder=folder)
    assert params.read_bytes() == (folder / "photographs.yaml").read_bytes()
    profile.use_profile("demo", params, force=False, folder=folder)
    params.write_text("mine: {}")
    with pytest.raises(ConfigError, match="say --force"):
        profile.use_profile("demo", params, force=False, folder=folder)
    with pytest.raises(ConfigError, match=r"unknown profile 'x'; choose one of demo"):
        profile.use_profile("x", params, force=False, folder=folder)
    assert params.read_text() == "mine: {}"


@pytest.mark.parametrize("key", ["controls", "descriptions"])
def test_the_report_names_recipes_that_there_are(params: Path, key: str) -> None:
    change(params, "report", **{key: {"vsa": "baseline"}})
    with pytest.raises(ConfigError, match=rf"report\.{key}: no recipe 'vsa'; choose from .*baseline"):
        check.check(params)


@pytest.mark.parametrize("path", ["data/faces/studio_2/train", "data/auxiliar", "data/distilled/anchor"])
def test_a_source_that_no_stage_makes_is_refused_in_one_line(params: Path, path: str) -> None:
    recipe = {"strategy": "supervised", "sources": {"labelled": "data/faces/studio/train", "mined": path}}
    change(params, "recipes", vas={**recipe, "deps": ["data/faces/studio/train", path, path]})
    with pytest.raises(
        ConfigError, match=rf"recipes\.vas\.sources\.mined: no stage of dvc\.yaml makes {path}; name [^\n]*$"
    ):
        check.check(params)


@pytest.mark.parametrize("path", ["data/auxiliary/street", "data/auxiliary", "data/auxiliary/street/anger"])
def test_a_source_in_or_above_an_output_is_taken(params: Path, path: str) -> None:
    recipe = {"strategy": "supervised", "sources": {"labelled": "data/faces/studio/train", "mined": path}}
    change(params, "recipes", vas={**recipe, "deps": ["data/faces/studio/train", path, path]})
    assert "all settings are valid" in check.check(params).line


def test_options_of_a_strategy_that_no_recipe_uses_are_checked(params: Path) -> None:
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    del whole["recipes"]["mean_teacher"]
    whole["evaluate"]["recipes"].remove("mean_teacher")
    del whole["report"]["descriptions"]["mean_teacher"]
    whole["train_final"]["options"]["mean_teacher"] = {"decai": 0.9}
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train_final\.options\.mean_teacher: unknown key 'decai'; known keys are "):
        check.check(params)


def test_an_unknown_strategy_names_its_recipe(params: Path) -> None:
    recipes = yaml.safe_load(params.read_text(encoding="utf-8"))["recipes"]
    change(params, "recipes", vas={**recipes["vas"], "strategy": "superviced"})
    with pytest.raises(ConfigError, match=r"recipes\.vas\.strategy: unknown strategies 'superviced'; choose one of "):
        check.check(params)
