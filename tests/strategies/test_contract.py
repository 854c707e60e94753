"""What every strategy must keep; the suite runs over all files of the folder, so adding one is testing it."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fer_pipeline.core.plugins import available, load
from fer_pipeline.networks.model import ExpressionNet
from fer_pipeline.networks.settings import NetworkSettings
from fer_pipeline.training.job import Start, train
from fer_pipeline.training.records import read_history
from fer_pipeline.training.sets import ImageSet, held_set
from fer_pipeline.training.settings import TrainingSettings
from fer_pipeline.training.strategy import Strategy

CLASSES = ("anger", "happiness", "neutral")
SIZE = 24


class PulledError(Exception):
    """The plug."""


def bands(count: int, seed: int) -> ImageSet:
    """Three classes told by a bright band at the top, in the middle or at the bottom."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), count)
    images = random.integers(40, 140, (count, SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label * 8 : label * 8 + 8] += 60
    names = np.array([f"toy/{seed}-{index}" for index in range(count)], dtype=object)
    return held_set(torch.from_numpy(images), torch.from_numpy(labels), names, np.full(count, "", dtype=object))


def distilled() -> ImageSet:
    """One network input a class."""
    inputs = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    return held_set(inputs, torch.arange(3), np.array(["a", "b", "c"], dtype=object), np.full(3, "", dtype=object))


WORLDS: dict[str, Mapping[str, ImageSet]] = {
    "labelled": {"labelled": bands(60, 0)},
    "auxiliary": {"labelled": bands(60, 0), "auxiliary": bands(90, 1)},
    "distilled": {"labelled": bands(60, 0), "distilled": distilled()},
}


def run(name: str, root: Path, world: str, *, options: Any = None, advance=lambda steps: None, epochs: int = 2) -> Path:
    module = load("fer_pipeline.strategies", name)
    state = root.with_name(f"{root.name}-state")
    for folder in (root, state):
        folder.mkdir(exist_ok=True)
    train(
        Start(NetworkSettings(width=4, dropout=0.2).sized(SIZE), None, CLASSES, 7),
        lambda ingredients: module.build(options or module.Options(), ingredients),
        WORLDS[world],
        bands(30, 2),
        settings=TrainingSettings.model_validate(
            {"epochs": epochs, "batch": 12, "optimizer": {"learning_rate": 0.02}, "select": "last"}
        ),
        device="cpu",
        state=state,
        folder=root,
        about={},
        data={},
        advance=advance,
    )
    return root


@pytest.fixture(params=available("fer_pipeline.strategies"))
def name(request) -> str:
    return request.param


@pytest.fixture(params=list(WORLDS))
def world(request) -> str:
    return request.param


def test_the_docstring_names_its_source(name: str) -> None:
    text = load("fer_pipeline.strategies", name).__doc__ or ""
    assert re.search(r"Source: .*(arXiv:\d{4}\.\d{5}|CVPR|FG|20\d\d)", text), "no source in the docstring"


def test_it_is_a_strategy_with_one_optimiser_a_trained_network(name: str) -> None:
    seen: list[Any] = []
    module = load("fer_pipeline.strategies", name)

    def look(ingredients):
        strategy = module.build(module.Options(), ingredients)
        seen.append(strategy)
        raise PulledError

    with pytest.raises(PulledError):
        train(
            Start(NetworkSettings(width=4).sized(SIZE), None, CLASSES, 7), look, WORLDS["labelled"], None,
            settings=TrainingSettings(select="last"), device="cpu", state=Path(), folder=Path(), about={}, data={},
        )  # fmt: skip
    (strategy,) = seen
    assert isinstance(strategy, Strategy)
    assert isinstance(strategy.predictor(), ExpressionNet)
    parameters = [id(parameter) for network in strategy.trained().values() for parameter in network.parameters()]
    assert parameters
    assert len(parameters) == len(set(parameters)), "two optimisers share a weight"


def test_loss_falls_and_the_toy_world_is_learned(name: str, world: str, tmp_path: Path) -> None:
    rows = read_history(run(name, tmp_path / "run", world, epochs=12))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["validation_accuracy"] > 0.9


def test_a_pause_changes_no_byte(name: str, world: str, tmp_path: Path) -> None:
    whole = run(name, tmp_path / "whole", world)
    steps = 0

    def pull(count: int) -> None:
        nonlocal steps
        steps += count
        if steps == 8:
            raise PulledError

    with pytest.raises(PulledError):
        run(name, tmp_path / "paused", world, advance=pull)
    torch.manual_seed(99)
    paused = run(name, tmp_path / "paused", world)
    for path in (path for path in whole.rglob("*") if path.is_file()):
        assert (paused / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def others(field: Any, value: Any) -> list[Any]:
    """Other values of a setting, by its type."""
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found: list[Any] = []
    for item in (get_args(one)[0] if get_origin(one) is Annotated else one for one in kinds):
        if get_origin(item) is Literal:
            found += [choice for choice in get_args(item) if choice != value]
        elif item is bool:
            found.append(not value)
        elif item in (int, float):
            base = value if isinstance(value, int | float) else 0
            found += [item(base + step) for step in (0.3, 0.5, 1, -0.3)]
        elif item is not NoneType:
            pytest.fail(f"say here how to vary a setting of type {item}")
    return found


def test_every_option_changes_the_result(name: str, tmp_path: Path) -> None:
    """An option that does nothing is a promise that is broken in silence."""
    options = load("fer_pipeline.strategies", name).Options
    results: dict[str, str] = {}
    choices = {key: field for key, field in options.model_fields.items() if get_origin(field.annotation) is Literal}
    bases = [{}, *({key: other} for key, field in choices.items() for other in others(field, field.default))]

    def result(values: dict[str, Any], world: str) -> str | None:
        try:
            chosen = options(**values)
        except ValidationError:
            return None
        label = f"{sorted(values.items())}-{world}"
        if label not in results:
            folder = run(name, tmp_path / f"run{len(results)}", world, options=chosen, epochs=1)
            results[label] = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
        return results[label]

    for key, field in options.model_fields.items():
        changed = any(
            (found := result({**base, key: other}, world)) is not None and found != result(base, world)
            for base in bases
            if key not in base
            for other in others(field, base.get(key, field.default))
            for world in WORLDS
        )
        assert changed, f"the option {key} changes nothing"
