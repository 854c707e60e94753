"""Targets are averages by hand; where all or no pool faces count, the strategy is the supervised one, bit for bit."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fer_pipeline.core.errors import ConfigError, DataError
from fer_pipeline.core.settings import RecipeSettings, validate
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.settings import read_card
from fer_pipeline.networks.weights import WeightSettings
from fer_pipeline.stages import train_final
from fer_pipeline.strategies import ensemble_teacher, linear, supervised
from fer_pipeline.strategies.ensemble_teacher import EnsembleTeacher, Options, check, settle_targets
from fer_pipeline.training import fit
from fer_pipeline.training.sources import Checkpoints
from tests.toy_world import CLASSES, write_teacher

KNOWING = 10 * np.eye(3)


def options(folder: Path, *matrices: np.ndarray, weights=(1.0, 1.0), **values) -> Options:
    """Teachers that multiply the means of the bands by matrices."""
    pairs = enumerate(zip(matrices, weights, strict=False))
    teachers = [write_teacher(folder / f"{number}.onnx", one, weight=weight) for number, (one, weight) in pairs]
    return Options.model_validate({"teachers": teachers, **values})


def opinions(matrix: np.ndarray, images: torch.Tensor) -> np.ndarray:
    """What such a teacher says, as log-probabilities, in float64."""
    means = (images.numpy().astype(np.float64) / 127.5 - 1).reshape(-1, 3, 8, 24, 3).mean((2, 3, 4))
    scores = means @ matrix
    return scores - np.log(np.exp(scores).sum(1, keepdims=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


@pytest.fixture
def pool(toy):
    return replace(toy(50, 5), labels=torch.full((50,), -1))


@pytest.fixture
def watched(monkeypatch) -> list[EnsembleTeacher]:
    """The strategies that have made a step."""
    original, seen = EnsembleTeacher.step, []

    def step(self, batches, run):
        seen.append(self)
        return original(self, batches, run)

    monkeypatch.setattr(EnsembleTeacher, "step", step)
    return seen


def test_targets_are_the_average_by_hand(train_toy, toy, pool, watched, tmp_path: Path) -> None:
    other = np.array([[1.0, 0, -200], [0, 5, 0], [3, 0, 4]])  # sure of mistakes, which the floor bounds
    chosen = options(tmp_path, KNOWING, other, weights=(1.0, 3.0), temperature=2.0)
    train_toy("run", strategy=ensemble_teacher, options=chosen, sets={"labelled": toy(60, 0), "unlabelled": pool})
    parts = [opinions(matrix, pool.all_pixels()) for matrix in (KNOWING, other)]
    assert parts[1].min() < np.log(1e-6)
    mean = (np.maximum(parts[0], np.log(1e-6)) + 3 * np.maximum(parts[1], np.log(1e-6))) / 4
    expected = np.exp(mean / 2) / np.exp(mean / 2).sum(1, keepdims=True)
    np.testing.assert_allclose(watched[0].targets.numpy(), expected, atol=6e-4)  # float16
    assert watched[0].targets.dtype == torch.float16
    assert watched[0].called.tolist() == np.bincount(mean.argmax(1), minlength=3).tolist()


def test_targets_temperatures_thresholds_and_balance_by_hand() -> None:
    p = torch.tensor([[0.8, 0.15, 0.05], [0.6, 0.2, 0.2], [0.5, 0.3, 0.2], [0.1, 0.9, 0.0001]])
    chosen = Options(labels="hard", threshold=0.55, balance=0.5)
    targets, face_weights, called, used = settle_targets(p.log(), chosen)
    assert targets.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert (called.tolist(), used.tolist()) == ([3, 1, 0], [2, 1, 0])
    of_class = [(3 / (2 * 2)) ** 0.5, (3 / (2 * 1)) ** 0.5]
    assert face_weights.tolist() == pytest.approx([of_class[0], of_class[0], 0, of_class[1]])
    soft = settle_targets(p.log(), Options(temperature=0.5))[0]
    torch.testing.assert_close(soft.float(), p.square() / p.square().sum(1, keepdim=True), atol=5e-4, rtol=0)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_hard_labels_of_one_teacher_are_supervised_training_on_them_bit_for_bit(
    train_toy, toy, pool, tmp_path: Path, balance: str
) -> None:
    labels = torch.from_numpy(opinions(KNOWING, pool.all_pixels()).argmax(1))
    settings = {"network": {"dropout": 0.3}, "balance": balance, "augment": {"flip": 0, "translate": 0}}
    expected = train_toy(
        "plain",
        options=supervised.Options(mix="beside", mined_ratio=0.5, mined_weight=0.7),
        sets={"labelled": toy(60, 0), "mined": replace(pool, labels=labels)},
        **settings,
    )
    chosen = options(tmp_path, KNOWING, labels="hard", unlabelled_ratio=0.5, weight=0.7, balance=balance == "weights")
    # The order of a stream is drawn from its name; nothing is drawn for the views.
    sets = {"labelled": toy(60, 0), "unlabelled": pool}
    with pytest.MonkeyPatch.context() as patch:
        derive, alike = fit.derive, dict[str | int, str]({"unlabelled": "mined"})
        patch.setattr(fit, "derive", lambda seed, *names: derive(seed, *(alike.get(one, one) for one in names)))
        found = train_toy("taught", strategy=ensemble_teacher, options=chosen, sets=sets, **settings)
    before, after = weights(expected[1]), weights(found[1])
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    before, after = (one[0].fitted.history for one in (expected, found))
    assert [row["train_loss"] for row in before] == [row["train_loss"] for row in after]
    assert [row["train_mined"] for row in before] == [row["train_pool"] for row in after]


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    "values", [{"threshold": 1.0}, {"threshold": 1.0, "labels": "hard"}, {"weight": 0.0, "statistics": "own"}]
)
def test_without_the_pool_it_is_supervised_bit_for_bit(train_toy, toy, pool, tmp_path: Path, norm, values) -> None:
    settings = {"network": {"norm": norm, "dropout": 0.3}, "balance": "weights"}
    alone, plain = train_toy("plain", options=supervised.Options(smoothing=0.1), **settings)
    chosen = options(tmp_path, KNOWING, smoothing=0.1, **values)
    sets = {"labelled": toy(60, 0), "unlabelled": pool}
    limited, other = train_toy("limit", strategy=ensemble_teacher, options=chosen, sets=sets, **settings)
    expected, found = weights(plain), weights(other)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    of_plain, of_limited = ([row["train_labelled"] for row in one.fitted.history] for one in (alone, limited))
    assert of_plain == of_limited
    notes = read_card(other).training["notes"]
    if "threshold" in values:
        assert [row["train_used_anger"] for row in limited.fitted.history] == [0, 0, 0]
        assert notes == [
            "no pool face counts as anger, happiness, neutral; lower the option threshold or take other teachers"
        ]
    else:
        assert notes == []


def test_history_and_card_say_what_was_used(train_toy, toy, pool, tmp_path: Path) -> None:
    p = np.exp(opinions(KNOWING, pool.all_pixels()))
    threshold = float(np.sort(p.max(1))[15:17].mean())  # some faces are under it
    used = np.bincount(p.argmax(1)[p.max(1) > threshold], minlength=3)
    sets = {"labelled": toy(60, 0), "unlabelled": pool}
    chosen = options(tmp_path, KNOWING, threshold=threshold)
    result, folder = train_toy("run", strategy=ensemble_teacher, options=chosen, sets=sets)
    for row in result.fitted.history:
        assert [row[f"train_used_{name}"] for name in CLASSES] == pytest.approx((used / 50).tolist())
    counts = read_card(folder).training["found"]["pool_faces"]
    assert list(counts["used"].values()) == used.tolist()
    assert list(counts["called"].values()) == np.bincount(p.argmax(1), minlength=3).tolist()
    assert sum(used) == 34


def test_teachers_are_asked_once_and_not_again_after_a_pause(train_toy, toy, pool, monkeypatch, tmp_path: Path) -> None:
    asked, original, steps = [], EnsembleTeacher._ask, 0
    monkeypatch.setattr(EnsembleTeacher, "_ask", lambda self, run: (asked.append(run.step), original(self, run))[1])
    chosen, sets = options(tmp_path, KNOWING), {"labelled": toy(60, 0), "unlabelled": pool}
    settings = {"strategy": ensemble_teacher, "options": chosen, "sets": sets}
    _, whole = train_toy("whole", **settings)
    assert asked == [0]

    class PulledError(Exception):
        pass

    def pull(count: int, **more: int) -> None:
        nonlocal steps
        steps += count
        if steps == 6:  # in the second epoch
            raise PulledError

    with pytest.raises(PulledError):
        train_toy("paused", advance=pull, **settings)
    _, paused = train_toy("paused", **settings)
    assert asked == [0, 0]
    for path in (path for path in whole.rglob("*") if path.is_file()):
        assert (paused / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_own_checkpoints_teach_by_their_predictions(train_toy, toy, pool, watched, tmp_path: Path) -> None:
    """Two seeds below one folder, averaged with another network by the weights of the settings."""
    for seed in (1, 2):
        train_toy(f"own/{seed}", seed=seed)
        (tmp_path / f"own/{seed}-state").rename(tmp_path / f"state{seed}")
    chosen = options(tmp_path, KNOWING, checkpoint_weight=2.0)
    sets = {"labelled": toy(60, 3), "unlabelled": pool}
    own = {"checkpoints": tmp_path / "own"}
    train_toy("run", strategy=ensemble_teacher, options=chosen, sets=sets, checkpoints=own)
    images = pool.all_pixels()
    parts = [np.log(load_checkpoint(tmp_path / f"own/{seed}").predict(images.numpy())) for seed in (1, 2)]
    mean = (opinions(KNOWING, images) + 2 * parts[0] + 2 * parts[1]) / 5
    expected = np.exp(mean) / np.exp(mean).sum(1, keepdims=True)
    np.testing.assert_allclose(watched[0].targets.numpy(), expected, atol=6e-4)


def test_own_checkpoints_are_not_asked_about_labelled_faces(train_toy, toy, pool, tmp_path: Path) -> None:
    _, own = train_toy("own")
    mixed = replace(pool, face_id=np.concatenate([toy(60, 0).face_id[:3], pool.face_id[3:]]))
    settings = {"strategy": ensemble_teacher, "sets": {"labelled": toy(60, 0), "unlabelled": mixed}}
    with pytest.raises(DataError, match=r"3 faces of the source unlabelled are labelled ones, .* name a pool without"):
        train_toy("run", options=Options(), checkpoints={"checkpoints": own}, **settings)
    train_toy("others", options=options(tmp_path, KNOWING), **settings)  # these saw no label of ours


def test_a_head_on_features_that_saw_its_labels_is_refused(train_toy, tmp_path: Path) -> None:
    """Its cross-validation would choose by faces that the features were fitted to."""
    data = {"labelled": "a" * 64}
    _, own = train_toy("own", data=data)
    start = WeightSettings(path=own / "weights.safetensors")
    chosen = {"options": linear.Options(strengths=(0.1,), folds=3), "epochs": None, "steps": 1, "select": "last"}
    told = "have learned from the very faces of the source labelled, .* start from weights"
    with pytest.raises(ConfigError, match=told):
        train_toy("head", strategy=linear, weights=start, data=data, **chosen)
    train_toy("other", strategy=linear, weights=start, data={"labelled": "b" * 64}, **chosen)


def test_checkpoints_are_known_by_what_they_predict(train_toy, tmp_path: Path) -> None:
    source, (_, own) = Checkpoints(), train_toy("own/1", data={"labelled": "a" * 64})
    (tmp_path / "own/1-state").rename(tmp_path / "state")
    before = source.sha256(tmp_path / "own"), source.sha256(own)
    train_toy("own/1", data={"labelled": "b" * 64})
    card = own / "card.json"
    assert (source.sha256(tmp_path / "own"), source.sha256(own)) == before
    card.write_text(re.sub('"size": 24', '"size": 25', card.read_text()))
    assert source.sha256(own) != before[1]
    source.class_counts(own, CLASSES[1:])
    with pytest.raises(ConfigError, match=r"own/1 does not know the class 'fear'; its classes are anger, "):
        source.class_counts(own, (*CLASSES, "fear"))
    with pytest.raises(DataError, match=r"no checkpoint in .* or in a folder of it; train it first"):
        source.sha256(tmp_path / "nothing")


def test_the_example_of_the_docs_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs/pretrained.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(recipes:\n  taught:.*?)```", text, re.DOTALL)
    assert block
    recipe = validate(
        RecipeSettings, yaml.safe_load(block[1].replace("…", "a" * 64))["recipes"]["taught"], where="docs"
    )
    settled = train_final.settle(train_final.Config(), recipe, recipe="taught", classes=CLASSES)
    assert {*recipe.sources, "reviewed"} == {*settled.sources}, "which every strategy takes"


ONNX = {"path": "n.onnx", "sha256": "0" * 64, "preprocessing": {"size": 24}}


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"name": "dlib_face"}, "a teacher is an expression network: set name, one of face_api_expressions, "),
        ({"path": "models/primitive/weights.safetensors"}, "a teacher is an expression network: set name"),
        ({"name": "nobody"}, "no weights are registered as 'nobody'"),
        (
            {"name": "fer_expressions", "load": 2},
            r"unknown key 'teachers\.0\.published\.load'; known keys are .*weight",
        ),
        ({"name": "fer_expressions", "weight": 0}, "weight: Input should be greater than 0"),
        (
            {**ONNX, "classes": ["happy", "sad"]},
            r"n\.onnx does not know the class 'anger'; its classes are happiness, ",
        ),
        ({"name": "fer_expressions"}, "fer_expressions does not know the class 'contempt'; its classes are "),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(teacher: dict, told: str) -> None:
    config, classes = train_final.Config(), (*CLASSES, "contempt")
    with pytest.raises(ConfigError, match=told) as raised:
        check(config, validate(Options, {"teachers": [teacher]}, where="options"), (), classes)
    assert "\n" not in str(raised.value)
