"""Changed labels: counts by class as by hand, one seed one noise in any order of the faces, the truth kept."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fer_pipeline.artifacts.faces import read_faces
from fer_pipeline.artifacts.split import read_split
from fer_pipeline.core.errors import ConfigError
from fer_pipeline.core.settings import RecipeSettings, Resources, validate
from fer_pipeline.networks.settings import read_card
from fer_pipeline.stages import train_final, train_primitive
from fer_pipeline.strategies import supervised
from fer_pipeline.training import fit as fit_module
from fer_pipeline.training.label_noise import LabelNoise, add_noise, describe_noise, noisy_labels
from fer_pipeline.training.seeds import SeedTraining
from fer_pipeline.training.settings import ModelSettings
from tests.project import project_settings, recipe_settings
from tests.stages.conftest import BANDS, band_faces  # noqa: F401
from tests.toy_world import bands

CLASSES = ("anger", "fear", "happiness", "surprise")
COUNTS = (40, 20, 7, 30)
LABELS = np.repeat(np.arange(4), COUNTS)
NAMES = np.array([f"f{index}" for index in range(len(LABELS))], dtype=object)


def moved(noise: LabelNoise) -> np.ndarray:
    """How many labels went from each class to each other one."""
    table = np.zeros((4, 4), int)
    np.add.at(table, (LABELS, noisy_labels(LABELS, NAMES, noise, CLASSES)), 1)
    return table


def test_symmetric_noise_changes_a_share_of_each_class_to_all_others() -> None:
    table = moved(LabelNoise(kind="symmetric", rate=0.3))
    off = table - np.diag(table.diagonal())
    assert off.sum(1).tolist() == [12, 6, 2, 9]
    assert (off[0] > 0).sum() == 3
    many = np.zeros(3000, np.int64)
    found = noisy_labels(many, np.arange(3000), LabelNoise(kind="symmetric", rate=0.9), CLASSES)
    assert np.bincount(found)[1:] == pytest.approx([900] * 3, abs=90), "each other class is as likely"


def test_asymmetric_noise_changes_the_pair_into_each_other_alone() -> None:
    table = moved(LabelNoise(kind="asymmetric", rate=0.1))
    assert (table[3, 1], table[1, 3]) == (3, 2)
    assert table.trace() == len(LABELS) - 5


def test_the_noise_is_a_function_of_seed_and_faces() -> None:
    noise = LabelNoise(kind="symmetric", rate=0.4)
    first, order = noisy_labels(LABELS, NAMES, noise, CLASSES), np.random.default_rng(0).permutation(len(LABELS))
    assert np.array_equal(noisy_labels(LABELS[order], NAMES[order], noise, CLASSES), first[order])
    other = noisy_labels(LABELS, NAMES, noise.model_copy(update={"seed": 1}), CLASSES)
    assert not np.array_equal(first, other)


def test_judged_faces_change_no_wrong_label_and_have_none(band_faces, tmp_path: Path) -> None:  # noqa: F811
    """With people's verdicts a training sees the wrong labels that it sees without them."""
    noise = {"kind": "symmetric", "rate": 0.3}
    folders = {
        "labelled": band_faces(tmp_path / "faces" / "train"),
        "reviewed": band_faces(tmp_path / "judged", seed=9),
    }
    trainings = [
        SeedTraining(
            owner="train_final@one", config=ModelSettings(label_noise=LabelNoise(**noise)), strategy="supervised",
            options=supervised.Options(), folders=own, shares={"validation": 0.2}, by_subject=True, split_seed=0,
            classes=BANDS, data={}, store=tmp_path, resources=Resources(device="cpu"),
        )
        for own in ({"labelled": folders["labelled"]}, folders)
    ]  # fmt: skip
    without, beside = (training.fitted_labels() for training in trainings)
    judged = read_faces(folders["reviewed"])
    assert beside == without | dict(zip(judged.face_id.tolist(), (BANDS[k] for k in judged.labels), strict=True))
    assert len(judged.face_id) > 0


def test_the_set_keeps_its_truth_and_says_what_was_changed() -> None:
    noise, images = LabelNoise(kind="symmetric", rate=0.25), bands(60, 0)
    changed = add_noise(images, noise, BANDS)
    assert changed.truth is not None
    assert torch.equal(changed.truth, images.labels)
    about = describe_noise(changed, noise, BANDS)
    counts = np.bincount(images.labels.numpy())
    assert list(about["labels"].values()) == counts.tolist()
    assert list(about["changed"].values()) == np.floor(0.25 * counts + 0.5).astype(int).tolist()
    assert int((changed.labels != images.labels).sum()) == sum(about["changed"].values())
    assert torch.equal(changed.take(np.arange(5)).truth, images.labels[:5])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "symmetric", "rate": 0},
        {"kind": "symmetric", "rate": 1},
        {"kind": "other", "rate": 0.1},
        {"kind": "asymmetric", "rate": 0.1, "pair": ["fear", "fear"]},
        {"kind": "symmetric", "rate": 0.1, "share": 1},
    ],
)
def test_wrong_settings_are_one_line(values) -> None:
    with pytest.raises(ConfigError, match=r"^train_final: [^\n]+$"):
        validate(ModelSettings, {"label_noise": values}, where="train_final")


def test_a_pair_that_is_no_class_is_refused_before_any_work() -> None:
    noise = {"label_noise": {"kind": "asymmetric", "rate": 0.1}}
    project = project_settings(classes=BANDS, recipes={"noisy": _recipe(Path("faces"), noise)})
    with pytest.raises(ConfigError, match=r"^recipes\.noisy\.label_noise\.pair: 'surprise' is none of the classes"):
        train_final.check_recipes(train_final.Config(), project)


def _recipe(faces: Path, overrides: dict) -> RecipeSettings:
    return recipe_settings({"labelled": faces}, overrides=overrides)


def test_trainings_see_it_and_nothing_else_does(band_faces, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    """Faces on disk and parts stay; the validation part of both stages is the same; a key of its own in the store."""
    faces = band_faces(tmp_path / "faces" / "train")
    before = {path.name: path.read_bytes() for path in faces.iterdir()}
    fast = {"network": {"width": 4}, "training": {"epochs": 1, "batch": 16}}
    noise = {"label_noise": {"kind": "symmetric", "rate": 0.4}}
    seen, original = [], fit_module.fit

    def spy(job, strategy, streams, validation, *rest):
        seen.append((streams["labelled"].set, validation))
        return original(job, strategy, streams, validation, *rest)

    monkeypatch.setattr(fit_module, "fit", spy)
    places = {"store": tmp_path / "store"}
    recipes = {"plain": _recipe(faces, {}), "noisy": _recipe(faces, noise)}
    project = project_settings(classes=BANDS, recipes=recipes, resources=Resources(device="cpu", workers=1))
    summaries = {
        name: train_final.run(
            validate(train_final.Config, fast, where=name), project, recipe=name, sources={"labelled": faces},
            out=tmp_path / name, timings=tmp_path / f"{name}.json", **places,
        )
        for name in recipes
    }  # fmt: skip
    config = validate(train_primitive.Config, fast | noise, where="train_primitive")
    primitive = train_primitive.run(config, project, faces=faces, out=tmp_path / "primitive", **places)
    assert {path.name: path.read_bytes() for path in faces.iterdir()} == before
    (plain, plain_validation), (noisy, noisy_validation), (_, primitive_validation) = seen
    assert list(noisy.face_id) == list(plain.face_id)
    assert list(noisy_validation.face_id) == list(plain_validation.face_id) == list(primitive_validation.face_id)
    assert torch.equal(noisy.truth, plain.labels)
    assert torch.equal(noisy_validation.truth, plain_validation.labels)
    assert torch.equal(noisy_validation.labels, primitive_validation.labels)
    changed = sum(int((one.labels != one.truth).sum()) for one in (noisy, noisy_validation))
    found = summaries["noisy"].counts
    assert (found["labels_changed"], found["labels"]) == (changed, 90)
    assert f"; {changed} of 90 labels changed (symmetric, rate 0.4)" in summaries["noisy"].line
    assert any("overrides label_noise" in warning for warning in summaries["noisy"].warnings)
    assert "labels_changed" not in summaries["plain"].counts
    split = read_split(tmp_path / "primitive")
    rows = list(zip(split.face_id.to_pylist(), split.label.tolist(), split.part.tolist(), strict=True))
    learned = dict(zip(noisy.face_id, noisy.labels.tolist(), strict=True))
    true = dict(zip(noisy.face_id, noisy.truth.tolist(), strict=True))
    fit_part, held_out = ({name: label for name, label, part in rows if part == one} for one in ("fit", "heldout"))
    assert fit_part == {name: learned[name] for name in fit_part}, "centroids are made of what was learned"
    assert held_out == {name: true[name] for name in held_out}, "and measured by what is true"
    spared = sum(learned[name] != true[name] for name in held_out)
    assert spared, "else nothing is tested"
    assert primitive.counts["labels_changed"] == changed - spared
    assert primitive.counts["labels"] == 90 - len(held_out)
    assert read_card(tmp_path / "noisy" / "0").training["label_noise"]["rate"] == 0.4
