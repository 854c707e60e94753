"""What outside data is behind a model follows it through starts, teachers, labellers and distilled images.

The registered weights are made up: a backbone to start from, and a network that teaches, both "trained on FER2013".
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from torch import nn

from fer_pipeline.artifacts.arrays import write_arrays
from fer_pipeline.artifacts.faces import read_metadata
from fer_pipeline.artifacts.metrics import read_predictions
from fer_pipeline.artifacts.scores import CENTROIDS, read_centroids
from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.files import read_json, write_json
from fer_pipeline.core.settings import DatasetSettings, dump_seen, validate
from fer_pipeline.networks import pretrained
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.pretrained import File, Source, describe_seen, seen_by
from fer_pipeline.networks.settings import Card, Member, NetworkSettings, read_card
from fer_pipeline.networks.weights import WeightSettings, check_unseen
from fer_pipeline.stages import distill, embed, evaluate, mine, score, shard, train_final, train_primitive
from fer_pipeline.training.sources import Faces
from tests.project import QUICK_DISTILLATION, project_settings, recipe_settings
from tests.stages.conftest import BAND_SIZE, BANDS

NETWORK: dict[str, Any] = {"width": 4}
TRAINING = {"epochs": 1, "batch": 32, "select": "last"}
FILM = {"film": DatasetSettings(adapter="fer2013", path=Path("raw/film"))}
PROJECT: dict[str, Any] = {"classes": BANDS, "seeds": (10,), "targets": ("film",), "datasets": FILM}
PLACES = {"out": "auxiliary"} | {name: name for name in ("control", "second_rule", "true_labels", "reviewed")}


def entry(name: str, how: str, of: str) -> dict[str, Any]:
    return {name: {"data": ["fer2013", "fer", "ferplus"], "how": how, "of": of}}


@pytest.fixture(autouse=True)
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers and installs `start` and `teacher`; the working directory is an empty project."""
    content, find, known = b"nobody's weights", pretrained.find, pretrained.names()
    backbone = build(NetworkSettings(size=BAND_SIZE, **NETWORK), 3, seed=9).backbone
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * BAND_SIZE**2, 3))
    one = replace(
        find("fer_expressions"),
        source=Source("npm", "@nobody/weights", "1.0", 1),
        files=(File("w.bin", len(content), hashlib.sha256(content).hexdigest()),),
        preprocessing=Preprocessing(size=BAND_SIZE),
        reader="",
    )
    own = {
        "start": replace(one, network="small", classes=(), load=lambda contents: backbone),
        "teacher": replace(one, network="bands", classes=BANDS, load=lambda contents: net),
    }
    monkeypatch.setattr(pretrained, "find", lambda name: own.get(name) or find(name))
    monkeypatch.setattr(pretrained, "names", lambda: (*known, *own))
    for name in own:
        (tmp_path / "models/outside" / name).mkdir(parents=True)
        (tmp_path / "models/outside" / name / "w.bin").write_bytes(content)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def faces(band_faces) -> dict[str, Path]:
    """A labelled set, a pool and a test split."""
    folders = {name: band_faces(Path(name), seed=seed) for seed, name in enumerate(("studio", "street"))}
    return {**folders, "test": band_faces(Path("test"), seed=2, split="test")}


@pytest.fixture
def train(faces: dict[str, Path]) -> Callable[..., Path]:
    def call(name: str, strategy: str = "supervised", *, sources: dict[str, Path] | None = None, **values: Any) -> Path:
        named = {"labelled": faces["studio"], **(sources or {})}
        recipe = recipe_settings(named, strategy=strategy, overrides=values)
        config = validate(
            train_final.Config, {"network": NETWORK, "training": TRAINING, "validation": 0}, where="train_final"
        )
        project = project_settings(**PROJECT, recipes={name: recipe})
        places = {"out": Path("final", name), "timings": Path("timings.json"), "store": Path("store")}
        train_final.run(config, project, recipe=name, sources=named, **places)
        return Path("final", name, "10")

    return call


@pytest.fixture
def pupil(train: Callable[..., Path], faces: dict[str, Path]) -> Callable[..., Path]:
    """Trains a student of an own checkpoint or, without one, of the made-up teacher."""

    def call(name: str, teacher: Path | None = None) -> Path:
        sources = {"unlabelled": faces["street"]} | ({"checkpoints": teacher} if teacher else {})
        options = {} if teacher else {"teachers": [{"name": "teacher", "allow_seen": ["film"]}]}
        return train(name, "ensemble_teacher", sources=sources, options=options)

    return call


@pytest.fixture
def walk(faces: dict[str, Path]) -> Callable[..., None]:
    """Walks from the labeller, which starts from some weights or from none, to image shards of what it mined."""

    def call(weights: dict[str, Any] | None) -> None:
        project, model, vectors, scores = (
            project_settings(**PROJECT),
            Path("primitive"),
            Path("vectors"),
            Path("scores"),
        )
        values = {"network": NETWORK, "weights": weights, "training": TRAINING, "split": {"validation": 0}}
        config = validate(train_primitive.Config, values, where="train_primitive")
        train_primitive.run(config, project, faces=faces["studio"], out=model, store=Path("store"))
        for name in ("studio", "street"):
            places: dict[str, Any] = {"faces": faces[name], "model": model, "out": vectors / name}
            embed.run(embed.Config(), project, name=name, store=Path("store"), **places)
        places = {"anchor_embeddings": vectors / "studio", "pool_embeddings": vectors / "street", "model": model}
        score.run(score.Config(), project, pool="street", out=scores / "street", **places)
        mine.run(mine.Config(by="count", value=9), project, scores=scores, out=Path("mined"))
        places = {option: Path(name) for option, name in PLACES.items()}
        shard.run(shard.Config(), project, pool="street", mined=Path("mined"), faces=faces["street"], **places)

    return call


def distil(source: Path, out: Path, *, weights: dict[str, Any] | None = None, **changes: Any) -> Path:
    config = validate(distill.Config, {**QUICK_DISTILLATION, **changes}, where="distill")
    project = project_settings(**PROJECT, train_final={"network": NETWORK, "weights": weights})
    distill.run(config, project, name="d", source=source, model=Path("primitive"), out=out, store=Path("store"))
    return out


def seen_in(folder: Path) -> Any:
    return read_json(folder / "card.json").get("seen")


def told(model: Path, faces: dict[str, Path]) -> tuple[str, list[str]]:
    """What `evaluate` hands to the report, and its warnings."""
    places = {"models": model.parent, "faces": faces["test"], "out": Path("metrics")}
    config = evaluate.Config(recipes=("any",), bootstrap=100)
    summary = evaluate.run(config, project_settings(**PROJECT), recipe="any", target="film", **places)
    return read_predictions(Path("metrics/predictions.parquet")).seen, [*summary.warnings]


def test_it_follows_starts_and_teachers_however_long_the_chain(train, pupil, faces: dict[str, Path]) -> None:
    assert seen_in(train("begun", weights={"name": "start"})) == entry("start", "is in", "the model")
    first = pupil("first")
    assert seen_in(first) == entry("teacher", "taught", "the model")
    heir = train("heir", weights={"path": str(first / "weights.safetensors")})
    assert seen_in(heir) == entry("teacher", "taught", "the model")
    second = pupil("second", heir)
    assert seen_in(second) == entry("teacher", "taught", "its teacher")
    assert seen_in(pupil("third", second)) == entry("teacher", "is behind", "its teacher")
    assert seen_in(pupil("of_begun", Path("final/begun"))) == entry("start", "taught", "the model")

    said, warnings = told(second, faces)
    assert said == "teacher, which taught its teacher, was trained on fer2013"
    assert f"{said}, which film is: the figures are of pictures it knows" in warnings


def test_check_refuses_weights_with_a_target_behind_them(pupil) -> None:
    file, targets = pupil("first") / "weights.safetensors", {"film": {"film", "fer2013"}}
    sentence = (
        r"weights\.safetensors: teacher, which taught the model, was trained on fer2013, which the target 'film' is"
    )
    with pytest.raises(ConfigError, match=rf"{sentence}, .*allow_seen: \[film\]$"):
        check_unseen(WeightSettings(path=file), targets)
    check_unseen(WeightSettings(path=file, allow_seen=("film",)), targets)
    check_unseen(WeightSettings(path=file), {"street": {"street", "csv"}})


def test_a_teacher_whose_card_says_less_is_another_teacher(pupil) -> None:
    """The store keeps no model under what was known when it was trained; the network is the same."""
    first = pupil("first")
    before = pupil("second", first)
    weights, card = (before / "weights.safetensors").read_bytes(), read_json(before / "card.json")
    content = read_json(first / "card.json")
    (first / "card.json").unlink()  # a link into the store
    write_json(first / "card.json", {key: value for key, value in content.items() if key != "seen"})
    after = pupil("second", first)
    assert (after / "weights.safetensors").read_bytes() == weights
    assert card.pop("seen")
    assert read_json(after / "card.json") == card


@pytest.mark.parametrize("labeller", ["start", "taught"])
def test_it_follows_pseudo_labels_and_distilled_images(
    train, pupil, walk, faces: dict[str, Path], labeller: str
) -> None:
    if labeller == "start":
        walk({"name": "start"})
        name, how, clause = "start", "is in", "start, which is in the labeller,"
    else:
        walk({"path": str(pupil("first") / "weights.safetensors")})
        name, how, clause = "teacher", "taught", "teacher, which taught the labeller,"
    assert seen_in(Path("primitive")) == entry(name, how, "the model")
    expected = entry(name, how, "the labeller")
    assert read_json(Path("mined/summary.json"))["seen"] == expected
    shards = {option: Faces("pseudo_label").seen(Path(folder)) for option, folder in PLACES.items()}
    assert all(dump_seen(found)["seen"] == expected for found in shards.values())
    assert seen_in(train("vas", sources={"mined": Path("auxiliary")})) == expected
    assert told(Path("final/vas/10"), faces)[0] == f"{clause} was trained on fer2013"

    images = distil(Path("auxiliary"), Path("distilled"))
    assert seen_in(images) == expected
    assert seen_in(train("das", sources={"distilled": images})) == expected
    assert seen_in(train("noise", sources={"noise": images})) is None
    of_faces = distil(faces["studio"], Path("of_faces"), theta_0="primitive")
    behind = entry(name, how, "the start of its distilled images")
    assert seen_in(of_faces) == behind
    assert seen_in(train("das_of_faces", sources={"distilled": of_faces})) == behind


def test_images_rest_on_what_theta_0_starts_from(faces: dict[str, Path]) -> None:
    images = distil(faces["studio"], Path("images"), weights={"name": "start"})
    assert seen_in(images) == entry("start", "is in", "the start of its distilled images")


def test_without_any_no_file_has_a_word_of_it(train, walk, faces: dict[str, Path]) -> None:
    walk(None)
    old = ["classes", "data", "network", "preprocessing", "training", "version"]
    assert sorted(read_json(Path("primitive/card.json"))) == old
    assert sorted(read_json(train("vas", sources={"mined": Path("auxiliary")}) / "card.json")) == old
    with safe_open("scores/street/centroids.safetensors", framework="numpy") as stored:
        assert stored.metadata() == {"classes": "\n".join(BANDS)}
    assert "seen" not in read_json(Path("mined/summary.json"))
    assert read_metadata(Path("auxiliary")) == read_metadata(faces["street"])
    assert seen_in(distil(Path("auxiliary"), Path("distilled"))) is None
    assert told(Path("final/vas/10"), faces)[0] == ""


def test_cards_from_before_say_what_they_started_from() -> None:
    network = NetworkSettings(name="joined", members=(Member(name="teacher"), Member(name="face_api_expressions")))
    card = Card(network=network, classes=BANDS, preprocessing=Preprocessing(size=8))
    assert describe_seen(seen_by(card), {"FER-2013"}) == "teacher was trained on fer2013"
    training = {"pretrained": {"name": "start", "licence": "MIT"}}
    card = Card(network=NetworkSettings(), classes=BANDS, preprocessing=Preprocessing(size=8), training=training)
    assert describe_seen(seen_by(card), {"film", "fer2013"}) == "start was trained on fer2013"
    assert describe_seen(seen_by(card), {"film"}) == ""


DAMAGED = (
    [],
    {"a\nb": {"data": ["x"]}},
    {"a": {"data": []}},
    {"a": {"data": ["\x1b[2J"]}},
    {"a": {"data": ["x"], "how": "stole", "of": "it"}},
)


def test_a_damaged_entry_is_one_line_wherever_it_stands(walk) -> None:
    walk({"name": "start"})
    card, file, place = read_json(Path("primitive/card.json")), next(Path("auxiliary").rglob("*.parquet")), Path("copy")
    table, centroids = pq.read_table(file), read_centroids(Path("scores/street"))
    about = json.loads(table.schema.metadata[b"fer_pipeline"])
    arrays = {"vectors": centroids.vectors, "counts": centroids.counts}
    for value in DAMAGED:
        write_json(place / "card.json", {**card, "seen": value})
        with pytest.raises(ConfigError, match=r"card\.json: seen") as raised:
            read_card(place)
        assert "\n" not in str(raised.value)
        metadata = {b"fer_pipeline": json.dumps({**about, "labeller_seen": value}).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), file)
        with pytest.raises(DataError, match="is no readable file of this pipeline, by its metadata") as raised:
            Faces("pseudo_label").seen(Path("auxiliary"))
        assert "\n" not in str(raised.value)
        write_arrays(place / CENTROIDS, arrays, {"classes": "\n".join(BANDS), "seen": json.dumps(value)})
        with pytest.raises(DataError, match=r"does not say what .*; run: dvc repro score") as raised:
            read_centroids(place)
        assert "\n" not in str(raised.value)
