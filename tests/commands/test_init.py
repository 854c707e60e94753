"""`init`: what is guessed, what is asked, and that what it writes is what the stages read."""

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

from fer_pipeline.commands import init
from fer_pipeline.commands.check import check
from fer_pipeline.commands.survey import Source, guess_csv, name_source
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
    assert "movies: dropped, outside the classes: disgust 69, fear 6" in told


def test_what_is_written_is_what_the_stages_read(call: Init) -> None:
    told = call()
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
        assert written()[section]["training"] == yaml.safe_load(profile)[section]["training"]


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
    assert "anchor: dropped, outside the classes: SADNESS 2" in told
    assert "wild: dropped, outside the classes: Sad 1" in told
    assert written()["datasets"]["anchor"]["classes"]["SADNESS"] is None


def test_numbers_as_labels_are_named_by_the_user(call: Init) -> None:
    rows = [{"image": f"{i}.jpg", "emotion": str(i)} for i in range(3)]
    write_set(Path("../numbers"), rows)
    changes = {"anchor": "csv:../numbers/labels.csv"}
    assert "labels outside the classes anger, happiness, sadness: 0 1, 1 1, 2 1" in fault(call, **changes)
    told = call(**changes, rename=["0=sadness", "1=anger", "2=happiness"])
    assert "numbers: 0 means sadness" in told
    assert written()["datasets"]["numbers"]["classes"] == {"0": "sadness", "1": "anger", "2": "happiness"}
    assert "no LABEL=CLASS" in fault(call, rename=["0=joy"], force=True)


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
        ("xml:../anchor/labels.csv", "with one of csv, fer2013"),
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
    assert "'tow' in SET=" in fault(call, label_column=["two=label", "tow=label"], **changes)
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


def test_a_picture_with_another_suffix_is_named(tmp_path: Path) -> None:
    file = write_set(tmp_path / "a", [{"image": "a.jpg", "emotion": "happy"}])
    file.write_text("image,emotion\na.png,happy\n")
    assert "(first: a.png, but a.jpg is there)" in ask(file)


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
