"""The linear head is scikit-learn's regression on the same features, and its strength that of a brute-force search."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, precision_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from fer_pipeline.core.errors import ConfigError, DataError, PipelineError
from fer_pipeline.core.settings import RecipeSettings, validate
from fer_pipeline.embedding.features import Extractor
from fer_pipeline.health.recorded_settings import find_contradictions
from fer_pipeline.networks.backbones import pooled_widths
from fer_pipeline.networks.checkpoints import load_checkpoint
from fer_pipeline.networks.settings import NetworkSettings, read_card
from fer_pipeline.networks.weights import check_members
from fer_pipeline.stages import train_final, train_primitive
from fer_pipeline.strategies import linear
from fer_pipeline.strategies.linear import (
    Options,
    block_units,
    coordinates,
    cross_validate,
    group_numbers,
    solve,
    standardisation,
)
from tests.toy_world import bands

STRENGTHS = (1e-4, 1e-2, 1.0)
CLASSES = 4


def points(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of unequal scales, one of them constant, of unequal classes and persons with several faces."""
    random = np.random.default_rng(seed)
    labels = random.choice(CLASSES, count, p=[0.5, 0.3, 0.15, 0.05])
    x = random.normal(size=(count, width)) * random.uniform(0.1, 30, width) + random.normal(size=width) * 10
    x[:, :CLASSES] += 12 * np.eye(CLASSES)[labels]
    x[:, CLASSES] = 3.25
    return x, labels, random.integers(0, count // 3, count)


def reference(strength: float, *blocks: int) -> Pipeline:
    """Another solver than ours, to its last digits; the features of a block are divided by the root of their number."""
    options = {"solver": "newton-cg", "tol": 1e-10, "max_iter": 10_000}
    units = np.concatenate([np.full(width, width**0.5) for width in blocks]) if blocks else 1.0
    scaled = FunctionTransformer(lambda x: x / units)
    return make_pipeline(StandardScaler(), scaled, LogisticRegression(C=strength, class_weight="balanced", **options))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("count", "width"), [(40, 90), (150, 12)])
def test_the_solution_is_that_of_scikit_learn(count: int, width: int, strength: float) -> None:
    x, labels, _ = points(count, width)
    expected = reference(strength).fit(x, labels)[-1]
    mean, deviation = standardisation(torch.from_numpy(x))
    z, axes = coordinates((torch.from_numpy(x) - mean) / deviation)
    found = solve(z, torch.from_numpy(labels), CLASSES, strength=strength)
    weight, bias = (found[:, :-1] @ axes.T).numpy(), found[:, -1].numpy()
    np.testing.assert_allclose(weight, expected.coef_, atol=3e-5 * np.abs(expected.coef_).max())
    # A constant added to all biases changes nothing, and scikit-learn chooses none either.
    np.testing.assert_allclose(bias - bias.mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-3)


@pytest.mark.parametrize(("extra", "blocks"), [(0, ()), (25, ()), (0, (4, 16))])
def test_the_losses_of_the_strengths_are_those_of_brute_force(extra: int, blocks: tuple[int, ...]) -> None:
    """Each person is in one fold, and mined faces are learned in every fold."""
    strengths = [strength * (10 if blocks else 1) for strength in STRENGTHS]
    x, labels, groups = points(90, 20)
    more, more_labels, _ = points(extra, 20, seed=1) if extra else (x[:0], labels[:0], None)
    expected = []
    for strength in strengths:
        if extra:
            probabilities = np.zeros((len(x), CLASSES))
            for fit, test in GroupKFold(3).split(x, groups=groups):
                model = reference(strength, *blocks).fit(np.r_[x[fit], more], np.r_[labels[fit], more_labels])
                probabilities[test] = model.predict_proba(x[test])
        else:
            probabilities = cross_val_predict(
                reference(strength, *blocks), x, labels, groups=groups, cv=GroupKFold(3), method="predict_proba"
            )
        balanced = 1 / np.bincount(labels)[labels]
        expected.append(log_loss(labels, probabilities, sample_weight=balanced))
    both = torch.from_numpy(np.r_[x, more]), torch.from_numpy(np.r_[labels, more_labels])
    units = block_units(blocks) if blocks else None
    found, left_out = cross_validate(*both, groups, strengths=strengths, folds=3, units=units)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert left_out == 0
    assert int(found.argmin()) == int(np.argmin(expected)) == 1, "the middle one, or the test could not tell"


def test_a_class_of_one_fold_is_left_out_and_counted() -> None:
    x, labels, groups = points(90, 8)
    rare = np.array([0, 1, 2])
    labels = np.where(labels == 3, 0, labels)
    labels[rare], groups[rare] = 3, 1000
    found, left_out = cross_validate(
        torch.from_numpy(x), torch.from_numpy(labels), groups, strengths=STRENGTHS, folds=3
    )
    assert left_out == 3
    # Without them the folds differ by where the rare person stood; every loss is of the three classes that are left.
    assert found.isfinite().all()


def test_a_face_without_a_person_is_one_of_its_own() -> None:
    numbers = group_numbers(np.array(["b", "", "a", "", "b"], dtype=object))
    assert len(set(numbers.tolist())) == 4
    assert numbers[0] == numbers[4]


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"strengths": [0.1]}])
def test_the_network_predicts_what_the_regression_does(train_toy, options) -> None:
    """From crops to probabilities by a saved checkpoint, against scikit-learn on that checkpoint's own features."""
    chosen = Options.model_validate({"strengths": STRENGTHS, "folds": 3, **options})
    network = {"features": {"stage2": 3, "stage3": 2}}
    _, folder = train_toy("run", strategy=linear, options=chosen, network=network, epochs=None, steps=1, select="last")
    classifier, found = load_checkpoint(folder), read_card(folder).training["found"]
    faces, labels = bands(60, 0).all_pixels().numpy(), bands(60, 0).labels.numpy()
    features = classifier.features(faces)
    learned = (features + classifier.features(faces[:, :, ::-1])) / 2 if chosen.flip else features
    width = read_card(folder).network.width
    blocks = (2 * width * 3 * 3, 4 * width * 2 * 2)
    model = reference(found["strength"], *blocks).fit(learned.astype(np.float64), labels)
    others = bands(30, 1).all_pixels().numpy()
    expected = model.predict_proba(classifier.features(others).astype(np.float64))
    np.testing.assert_allclose(classifier.predict(others), expected, atol=2e-3)
    assert [strength for strength, _ in found["log_loss_of_strengths"]] == list(chosen.strengths)
    assert found["strength"] == min(found["log_loss_of_strengths"], key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("rare", [False, True])
def test_the_precision_of_centroids_is_that_of_brute_force(rare: bool) -> None:
    x, labels, groups = points(90, 8)
    if rare:  # a class that no other fold has can be nearest to nothing
        labels = np.where(labels == 3, 0, labels)
        labels[:3], groups[:3] = 3, 1000
    nearest = np.empty_like(labels)
    for fit, test in GroupKFold(3).split(x, groups=groups):
        classes = sorted(set(labels[fit].tolist()))
        centroids = np.array([x[fit][labels[fit] == k].mean(0) for k in classes])
        for row in test:
            cosines = centroids @ x[row] / np.linalg.norm(centroids, axis=1) / np.linalg.norm(x[row])
            nearest[row] = classes[int(cosines.argmax())]
    expected = precision_score(labels, nearest, average="macro", labels=range(CLASSES), zero_division=0)
    found = linear.centroid_precision(torch.from_numpy(x), torch.from_numpy(labels), groups, folds=3)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0 < found < 1


def test_what_is_mined_by_is_the_most_precise_of_the_sets(train_toy) -> None:
    sets = ({"stage4": 1}, {"stage1": 6}, None)
    chosen = Options(strengths=(0.1,), folds=3, mining_features=sets)
    network = {"features": {"stage2": 3}}
    _, folder = train_toy("run", strategy=linear, options=chosen, network=network, epochs=None, steps=1, select="last")
    card, classifier = read_card(folder), load_checkpoint(folder)
    faces = bands(60, 0).all_pixels().numpy()
    model, inputs = classifier.model, card.preprocessing.apply(faces)
    groups, precisions, found = group_numbers(bands(60, 0).subjects), [], {}
    for number, grids in enumerate(sets):
        with torch.no_grad():
            found[number] = model.features(inputs) if grids is None else model.pooled(inputs, grids)
        precisions.append(linear.centroid_precision(found[number].double(), bands(60, 0).labels, groups, folds=3))
    assert [grids for grids, _ in card.training["found"]["mining_precision"]] == list(sets)
    np.testing.assert_allclose([one for _, one in card.training["found"]["mining_precision"]], precisions)
    best = int(np.argmax(precisions))
    assert card.mining_features == sets[best] == {"stage1": 6}
    extractor = Extractor(classifier)
    assert extractor.dimensions == 4 * 36
    np.testing.assert_allclose(extractor(faces), found[best].numpy(), atol=1e-5)
    assert classifier.features(faces).shape == (60, 8 * 9), "the head reads its own features"


def test_a_card_contradicts_no_settings_that_were_not_used(train_toy, tmp_path: Path) -> None:
    """All recipes share the settings of a training, and a stage refuses a model that says it was made with others."""
    chosen = Options(strengths=(0.1,), folds=3)
    _, folder = train_toy("final/10", strategy=linear, options=chosen, epochs=None, steps=1, threads=2)
    assert read_card(folder).training["settings"] == {"threads": 2}
    shared = {"epochs": None, "steps": 500, "batch": 32, "average": 0.9, "select": "best"}
    for threads, told in ((2, []), (1, ["train_final.training.threads"])):
        section = {"training": {**shared, "threads": threads}, "options": {"linear": {"strengths": [0.1], "folds": 3}}}
        params = {"train_final": section, "recipes.head": {"strategy": "linear", "overrides": {}}}
        stages = {"train_final@head": {"params": {"params.yaml": params}, "outs": [{"path": "final"}]}}
        assert [one.key for one in find_contradictions(tmp_path, stages)] == told


def test_what_was_left_out_and_a_strength_at_the_end_are_noted(train_toy) -> None:
    chosen = Options(strengths=(1e-9, 1e-8), folds=3)
    _, folder = train_toy("run", strategy=linear, options=chosen, epochs=None, steps=1, select="last")
    card = read_card(folder)
    assert card.training["found"]["strength"] == 1e-8
    assert card.training["notes"] == ["the largest strength, 1e-08, was the best; try larger ones as well"]
    assert card.training["steps"] == 1


def test_faults_are_one_line(train_toy, monkeypatch) -> None:
    def run(name: str, **options):
        train_toy(name, strategy=linear, options=Options(**options), epochs=None, steps=1, select="last")

    with pytest.raises(DataError, match="shows 9 persons, fewer than the 10 folds of the cross-validation; lower"):
        run("a", folds=10)
    monkeypatch.setattr(linear, "MOST_STEPS", 1)
    with pytest.raises(PipelineError, match=r"strength 0\.01 did not converge in 1 steps; take it out of strengths"):
        run("b", folds=3, strengths=(0.01,))
    monkeypatch.setattr(linear, "free_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"60 faces, 32 each, want .* take coarser grids in network\.features"):
        run("c", folds=3)


WEIGHTS = {"path": "weights.safetensors"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "learns a head alone, on features of loaded weights: set weights"),
        ({"weights": WEIGHTS, "network": {"feature_dim": 8}}, "adds a layer that the strategy linear would not train"),
        ({"weights": WEIGHTS, "network": {"dropout": 0.5}}, r"network\.dropout has no effect with the strategy linear"),
        ({"weights": WEIGHTS, "training": {"epochs": 3}}, r"training\.epochs has no effect with the strategy linear"),
        ({"weights": WEIGHTS, "training": {"balance": "sampling"}}, r"training\.balance has no effect"),
        ({"weights": WEIGHTS, "training": {"average": 0.9}}, r"training\.average has no effect"),
        ({"weights": WEIGHTS, "options": {"smoothing": 0.1}}, r"unknown key 'options\.smoothing'; known keys are "),
        ({"weights": WEIGHTS, "options": {"strengths": []}}, r"options\.strengths: .* at least 1 item"),
        ({"weights": WEIGHTS, "options": {"strengths": [1, 0.1]}}, r"options\.strengths: strengths must rise"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, told) -> None:
    with pytest.raises(ConfigError, match=told) as raised:
        validate(train_primitive.Config, {"strategy": "linear", **settings}, where="train_primitive")
    assert "\n" not in str(raised.value)
    if {"network", "training"} & settings.keys():
        folder = Path("data/faces/anchor/train")
        recipe = RecipeSettings(
            strategy="linear", sources={"labelled": folder}, deps=(folder,) * 3, overrides={**settings, "options": {}}
        )
        common = train_final.Config.model_validate({"training": {"average": 0.5, "epochs": 7}})
        with pytest.raises(ConfigError, match=rf"recipes\.head \(linear\): .*{told}"):
            train_final.settle(common, recipe, recipe="head", classes="abcd")
        mines = recipe.model_copy(update={"overrides": {"options": {"mining_features": [{"stage2": 2}]}}})
        with pytest.raises(ConfigError, match=r"recipes\.head: mining_features are of train_primitive"):
            train_final.settle(common, mines, recipe="head", classes="abcd")


def test_common_settings_of_recipes_are_left_aside_and_not_recorded() -> None:
    folder = Path("data/faces/anchor/train")
    recipe = RecipeSettings(strategy="linear", sources={"labelled": folder}, deps=(folder,) * 3)
    common = {"weights": WEIGHTS, "training": {"average": 0.5, "epochs": 7, "threads": 2}}
    used = train_final.settle(train_final.Config.model_validate(common), recipe, recipe="head", classes="abcd").used
    assert (used.training.average, used.training.steps, used.training.threads) == (None, 1, 2)
    assert train_primitive.Config.model_validate({"strategy": "linear", "weights": WEIGHTS}).options == Options()
    assert "strategy" not in train_primitive.Config().model_dump(), "keys of models from before would change"


def test_the_example_of_the_readme_is_valid() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    start, block = re.findall(r"```yaml\n(train_primitive:\n  (?:network|strategy):.*?)```", text, re.DOTALL)
    validate(train_primitive.Config, yaml.safe_load(start)["train_primitive"], where="README.md")
    members = re.search(r"`network: (\{name: joined, .*?\]\})`", text)
    assert members
    check_members(NetworkSettings.model_validate(yaml.safe_load(members[1])), None, {})
    config = validate(train_primitive.Config, yaml.safe_load(block)["train_primitive"], where="README.md")
    assert isinstance(config.options, Options)
    for grids in (config.network.features, *config.options.mining_features):
        assert grids is None or pooled_widths(config.network, grids, where="README.md")
